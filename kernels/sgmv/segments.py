"""sgmv for devices without a kernel of their own: one shrink and few expands a segment.

The inputs of modules that share x are multiplied by their A matrices in one product; x and y are
sorted by adapter, so that a segment is a view and nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft.kernels.sgmv.reference import Part

Ints = NDArray[np.int64]


class Segments:
    """One step's rows, sorted by adapter: made once, used at every site of every layer."""

    def __init__(self, starts: Sequence[int], slots: Sequence[int]) -> None:
        """As for ``reference.sgmv``; no slot is negative."""
        self.starts: Ints = np.array(starts, dtype=np.int64)
        self.slots: Ints = np.array(slots, dtype=np.int64)
        # For kernels in C: addresses, taken once, of these arrays and of room for their own.
        self._pieces: Ints = np.empty(2 * (len(slots) + 1), dtype=np.int64)
        self._scratch = torch.empty(0)
        self.starts_address = self.starts.ctypes.data
        self.slots_address = self.slots.ctypes.data
        self.pieces_address = self._pieces.ctypes.data

    def __len__(self) -> int:
        return len(self.slots)

    def scratch(self, size: int) -> int:
        """Return the address of room for so many floats; it is the same room every time."""
        if len(self._scratch) < size:
            self._scratch = torch.empty(size)
        return self._scratch.data_ptr()


class Site(NamedTuple):
    """One adapter's weights for the modules that share an input, laid out for the products."""

    a: Tensor  # [in, rank of all parts], contiguous
    # Of each part: ranks from and to, columns from and to, B^T [rank, out].
    parts: list[tuple[int, int, int, int, Tensor]]


def lay_out(parts: list[Part]) -> Site | None:
    """Prepare the parts of one slot at one site. None if there are none."""
    if not parts:
        return None
    laid = []
    rank = 0
    for part in parts:
        end = rank + part.a.shape[0]
        columns = (part.column, part.column + part.b.shape[0])
        laid.append((rank, end, *columns, part.b.t().contiguous()))
        rank = end
    return Site(torch.cat([part.a for part in parts]).t().contiguous(), laid)


def sgmv(
    y: Tensor, x: Tensor, starts: Sequence[int], slots: Sequence[int], sites: list[Site | None]
) -> None:
    """Compute what ``reference.sgmv`` computes; ``sites`` holds each slot's weights here."""
    for i, slot in enumerate(slots):
        site = sites[slot] if slot >= 0 else None
        if site is None:
            continue
        begin, end = starts[i], starts[i + 1]
        v = x[begin:end] @ site.a
        rows = y[begin:end]
        for rank, rank_end, column, column_end, b in site.parts:
            rows[:, column:column_end].addmm_(v[:, rank:rank_end], b)


class SiteTable:
    """What every slot has at one site of one layer."""

    def __init__(self, slots: int) -> None:
        self._sites: list[Site | None] = [None] * slots

    def set(self, slot: int, parts: list[Part]) -> None:
        """Replace what a slot has."""
        self._sites[slot] = lay_out(parts)

    def add(self, y: Tensor, x: Tensor, segments: Segments) -> None:
        """Add the updates of all segments: y [T, out of the site], x [T, in]."""
        sgmv(y, x, segments.starts.tolist(), segments.slots.tolist(), self._sites)
