"""What is computed with a matrix whose granules lie anywhere in an arena, in plain torch.

Also what runs on a GPU, and where there is no compiler. Rows of a matrix that an adapter has of its
own, and both sides of its updates of an embedding or a head, are such matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weft.kernels.sgmv.granules import COLUMNS, RANKS

# Groups of 8 rows that are put together at once: some megabytes, whatever the matrix.
_GROUPS_AT_ONCE = 512


@dataclass(frozen=True)
class Matrix:
    """[rows, columns], cut as ``granules.pack`` cuts: 8 rows by 128 columns, padded with zeros."""

    granules: Tensor  # [of the arena, 8, 128]
    places: Tensor  # [blocks of columns, groups of rows] int64: where each granule is
    rows: int
    columns: int


def times(m: Matrix, v: Tensor) -> Tensor:
    """Return ``v M``: v [T, rows] to [T, columns], of v's type."""
    y = v.new_zeros(len(v), m.columns)
    for first in range(0, m.places.shape[1], _GROUPS_AT_ONCE):
        some = _dense(m, first)
        y += v[:, first * RANKS : first * RANKS + len(some)] @ some.to(v.dtype)
    return y


def times_transposed(m: Matrix, x: Tensor) -> Tensor:
    """Return ``x M^T``: x [T, columns] to [T, rows], of x's type."""
    groups = range(0, m.places.shape[1], _GROUPS_AT_ONCE)
    parts = [x @ _dense(m, first).to(x.dtype).t() for first in groups]
    return torch.cat(parts, dim=1)


def rows_at(m: Matrix, index: Tensor) -> Tensor:
    """Return the rows at ``index`` [N] int64: [N, columns], of the arena's type."""
    places = m.places[:, index // RANKS].t()  # [N, blocks]
    return m.granules[places, (index % RANKS)[:, None]].flatten(1)[:, : m.columns]


def columns_at(m: Matrix, index: Tensor) -> Tensor:
    """Return the columns at ``index`` [N] int64: [N, rows], of the arena's type."""
    places = m.places[index // COLUMNS]  # [N, groups]
    return m.granules[places, :, (index % COLUMNS)[:, None]].flatten(1)[:, : m.rows]


def _dense(m: Matrix, first: int) -> Tensor:
    """Return the rows from group ``first`` on, as many as are put together at once."""
    places = m.places[:, first : first + _GROUPS_AT_ONCE]
    found = m.granules[places.t()]  # [groups, blocks, 8, 128]
    rows = found.transpose(1, 2).reshape(-1, found.shape[1] * COLUMNS)
    return rows[: m.rows - first * RANKS, : m.columns]
