"""sgmv for devices without a kernel of their own: one shrink and few expands a segment.

The inputs of modules that share x are multiplied by their A matrices in one product; x and y are
sorted by adapter, so that a segment's rows are views. Its weights are put together from their
granules each time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft.kernels.native.library import NUMBER, POINTER
from weft.kernels.sgmv.granules import AFFINE_BLOCKS, COLUMNS, RANKS, Tables, unpack, unpack_affine

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class _Addresses(ctypes.Structure):
    """``segments`` in cpu.c."""

    _fields_ = [*((name, POINTER) for name in ("starts", "slots", "weights")), ("count", NUMBER)]


class Segments:
    """One step's rows, sorted by adapter: used at every site of every layer."""

    def __init__(
        self,
        starts: Sequence[int] | Ints = (0,),
        slots: Sequence[int] | Ints = (),
        weights: Sequence[float] | Floats | None = None,
    ) -> None:
        """As for ``reference.sgmv``; no slot is negative."""
        self._addresses = _Addresses()
        self.address = ctypes.addressof(self._addresses)
        self.lay_out(starts, slots, weights)

    def lay_out(
        self,
        starts: Sequence[int] | Ints,
        slots: Sequence[int] | Ints,
        weights: Sequence[float] | Floats | None = None,
    ) -> None:
        """Become those of another step. What a program has recorded with these follows them."""
        self.starts: Ints = np.array(starts, dtype=np.int64)
        self.slots: Ints = np.array(slots, dtype=np.int64)
        self.weights: Floats = np.ones(len(slots), dtype=np.float32)
        if weights is not None:
            self.weights[:] = weights
        found = self._addresses
        found.starts, found.slots = self.starts.ctypes.data, self.slots.ctypes.data
        found.weights, found.count = self.weights.ctypes.data, len(slots)

    def __len__(self) -> int:
        return len(self.slots)


def in_turns(starts: Ints, slots: Ints, weights: Floats) -> list[Segments]:
    """Return what to add first, and what after it: of rows with several adapters one at a time.

    Args:
        starts: [segments + 1].
        slots: [segments, adapters], -1 past a segment's last; those with more adapters come later.
        weights: like slots.
    """
    counts = (slots >= 0).sum(axis=1)
    firsts = np.searchsorted(counts, np.arange(slots.shape[1]), side="right")
    return [
        Segments(starts[first:], slots[first:, turn], weights[first:, turn])
        for turn, first in enumerate(firsts)
    ]


class PagedLora:
    """The adapters whose weights lie in the pages of one arena."""

    def __init__(self, arena: Tensor, tables: Tables, widths: Sequence[Sequence[int]]) -> None:
        """``arena`` as ``granules.typed`` returns it; ``widths``: by site, columns of each part."""
        self._arena = arena.flatten(1, 2)  # [layers, pages * page_granules, 8, 128]
        self._page_granules = arena.shape[2]
        self._tables = tables
        self._widths = widths

    def reserve(self, rows: int) -> None:
        """Do nothing: memory is taken as it is needed."""

    def add(self, y: Tensor, x: Tensor, layer: int, site: int, segments: Segments) -> None:
        """Add the updates of all segments: y [T, out of the site], x [T, in]."""
        tables = self._tables
        for i, slot in enumerate(segments.slots.tolist()):
            groups = tables.groups[slot, layer, site]
            rows = slice(int(segments.starts[i]), int(segments.starts[i + 1]))
            if not groups.any() or rows.start == rows.stop:
                continue
            affine_starts = tables.affine_start[slot, layer, site]
            weight = float(segments.weights[i])
            start = int(tables.a_start[slot, layer, site])
            a = self._read(slot, layer, start, int(groups.sum()), x.shape[1])
            v = x[rows] @ a.to(x.dtype).t()
            rank = column = 0
            for part, width in enumerate(self._widths[site]):
                count = int(groups[part])
                if count:
                    start = int(tables.b_start[slot, layer, site, part])
                    b = self._read(slot, layer, start, count, width)
                    scale = weight * float(tables.scales[slot, layer, site, part])
                    ranks = v[:, RANKS * rank : RANKS * (rank + count)]
                    own = y[rows, column : column + width]
                    own.addmm_(ranks, b.to(y.dtype), alpha=scale)
                    self._apply_affine(own, slot, layer, int(affine_starts[part]), weight)
                rank += count
                column += width

    def _read(self, slot: int, layer: int, start: int, groups: int, columns: int) -> Tensor:
        """Return [8 * groups, columns] of a slot."""
        found = self._granules(slot, layer, start, groups * -(-columns // COLUMNS))
        return unpack(found, groups)[:, :columns]

    def _apply_affine(self, y: Tensor, slot: int, layer: int, start: int, weight: float) -> None:
        """Replace y by what its module's affine, if there is one, makes of it."""
        if start == 0:
            return
        columns = y.shape[1]
        count = -(-columns // (AFFINE_BLOCKS * COLUMNS))
        factor, offset = unpack_affine(self._granules(slot, layer, start, count), columns)
        y.copy_(factor * y.float() + weight * offset)

    def _granules(self, slot: int, layer: int, start: int, count: int) -> Tensor:
        """Return [count, 8, 128]."""
        index = np.arange(start, start + count)
        pages = self._tables.pages[slot, index // self._page_granules].astype(np.int64)
        places = torch.from_numpy(pages * self._page_granules + index % self._page_granules)
        return self._arena[layer].index_select(0, places.to(self._arena.device))
