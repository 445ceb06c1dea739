"""sgmv for devices without a kernel of their own: one shrink and few expands a segment.

The inputs of modules that share x are multiplied by their A matrices in one product; x and y are
sorted by adapter, so that a segment is a view and nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from weft.kernels.sgmv.reference import Part


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
