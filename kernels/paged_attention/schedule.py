"""Cutting one step's attention into work of similar size, on the host.

Attention over a row's keys is defined as a sequence of partial results, one for each *split* of
``SPLIT_TOKENS`` positions, merged in the order of positions. A tile of queries can be computed by
one program that walks all its splits, or by one program for each split whose results are merged
afterwards: the arithmetic is the same, operation for operation. So how a step is cut is free to
depend on the batch, and what comes out of it does not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Ints32 = NDArray[np.int32]

# Positions of a split. Shorter ones spread a single long context over more programs, longer ones
# write fewer partial results: a split reads 2 * 512 vectors of d and writes one for each query.
SPLIT_TOKENS = 512

# Columns of ``Cut.items`` and of ``Cut.merges``; the kernels read them by these names.
ITEM_FIELDS = ("token", "tokens", "row", "position", "split_begin", "split_end", "partial")
MERGE_FIELDS = ("token", "position", "partial", "partial_stride")


class Tiles(NamedTuple):
    """Adjacent queries of one row that share the reads of their keys; arrays of one length."""

    token: Ints  # index of the first query
    tokens: Ints  # how many
    row: Ints
    position: Ints  # of the first query

    @property
    def splits(self) -> Ints:
        """How many splits its last query sees."""
        return (self.position + self.tokens - 1) // SPLIT_TOKENS + 1


class Cut(NamedTuple):
    """Work for one kernel launch.

    An item is a tile with a range of splits. Where ``partial`` is negative these are all of them,
    and the item is the result. Elsewhere it is one split ``s``, and query ``i`` of the tile goes to
    partial result ``partial + s * tokens + i``. A merge names one query's partial results: split
    ``s`` is at ``partial + s * partial_stride``.
    """

    items: Ints32  # [items, ITEM_FIELDS], longest first
    merges: Ints32  # [queries of divided tiles, MERGE_FIELDS]
    partials: int  # partial results that are used


def tile(starts: Ints, positions: Ints, tokens_max: Ints) -> Tiles:
    """Cut row i's queries ``starts[i]:starts[i + 1]`` into tiles of at most ``tokens_max[i]``."""
    counts = np.diff(starts)
    tiles_of = -(-counts // tokens_max)
    row = np.repeat(np.arange(len(counts)), tiles_of)
    index = np.arange(len(row)) - np.repeat(np.cumsum(tiles_of) - tiles_of, tiles_of)
    token = starts[row] + index * tokens_max[row]
    return Tiles(token, np.minimum(starts[row + 1] - token, tokens_max[row]), row, positions[token])


def cut(tiles: Tiles, *, heads_parallel: int, programs: int, first: int, end: int) -> Cut:
    """Divide the tiles that would be the last to finish.

    Args:
        tiles: of any rows.
        heads_parallel: programs that each item is for: its heads are computed side by side.
        programs: how many the device runs at a time.
        first: the first partial result that may be used.
        end: past the last one. A tile that finds no room stays whole, and so do the shorter ones.
    """
    splits = tiles.splits
    # A tile no longer than a program's share of everything holds nobody up.
    share = -(-int(splits.sum()) * heads_parallel // programs)
    order = np.argsort(-splits, kind="stable")
    wanted = np.where(splits > max(share, 1), splits * tiles.tokens, 0)[order]
    divided = np.zeros(len(splits), dtype=bool)
    divided[order] = (wanted > 0) & (first + np.cumsum(wanted) <= end)

    needed = np.where(divided, splits * tiles.tokens, 0)
    partial = first + np.cumsum(needed) - needed
    copies = np.where(divided, splits, 1)
    of = np.repeat(np.arange(len(splits)), copies)
    split = np.arange(len(of)) - np.repeat(np.cumsum(copies) - copies, copies)
    items = np.stack(
        (
            tiles.token[of],
            tiles.tokens[of],
            tiles.row[of],
            tiles.position[of],
            split,
            np.where(divided[of], split + 1, splits[of]),
            np.where(divided[of], partial[of], -1),
        ),
        axis=1,
    )
    items = items[np.argsort(items[:, 4] - items[:, 5], kind="stable")]

    chosen = np.flatnonzero(divided)
    queries = tiles.tokens[chosen]
    of = np.repeat(chosen, queries)
    index = np.arange(len(of)) - np.repeat(np.cumsum(queries) - queries, queries)
    merges = np.stack(
        (
            tiles.token[of] + index,
            tiles.position[of] + index,
            partial[of] + index,
            tiles.tokens[of],
        ),
        axis=1,
    )
    return Cut(items.astype(np.int32), merges.astype(np.int32), int(needed.sum()))
