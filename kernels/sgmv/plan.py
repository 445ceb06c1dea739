"""What the paged kernels of sgmv do in one step, as integers that they read on the device.

A step's rows are sorted by adapter. A *chunk* is up to ``chunk_rows`` rows of one segment. A *unit*
is a chunk with one of its adapters: its shrink gives ``v = x A^T`` for these rows, its expand adds
``weight * scale * v B^T``. Chunks whose rows have several adapters have a unit for each. An *item*
is a unit with one block of its ranks: the work of one program of shrink at one site.

The integers of a step lie behind one another, so that one copy of the used front brings them to the
device, and a captured graph finds how much there is to do in the same place in every step:

    chunks, units, and of each site: where its items begin, and how many they are
    units: row, rows, slot, row in v, weight (the bits of a float32), next unit of the chunk or -1
    items: unit * BLOCKS + block, site by site

The first unit of chunk c is unit c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]

# Places in the header; those of a site's items are two further for each site before it.
CHUNKS, UNITS, ITEMS_AT, ITEMS = range(4)
HEADER_INTS = 16
# Places in a unit. Two are unused: a unit does not straddle the 32 bytes that memory is read by.
ROW, ROW_COUNT, SLOT, V_ROW, WEIGHT, NEXT = range(6)
UNIT_INTS = 8
# Of ranks, of one unit, at most.
BLOCKS = 256

_ONE = np.float32(1).view(np.int32)


class Counts(NamedTuple):
    """How much a plan holds, or may hold at most."""

    ints: int  # from the front of the buffer
    chunks: int
    rows: int  # of v
    items: tuple[int, ...]  # by site


class Planner:
    """Cuts steps of a limited size into chunks and items."""

    def __init__(
        self,
        *,
        tokens_max: int,
        segments_max: int,
        chunk_rows: int,
        block_ranks: Sequence[int],
        ranks_max: Sequence[int],
        row_adapters_max: int = 1,
    ) -> None:
        """``block_ranks`` are the ranks of an item, ``ranks_max`` of a unit at most; by site."""
        self.chunk_rows = chunk_rows
        self.row_adapters_max = row_adapters_max
        self._blocks_groups = np.array(block_ranks, dtype=np.int32) // 8
        chunks = min(tokens_max, tokens_max // chunk_rows + min(segments_max, tokens_max))
        units = chunks * row_adapters_max
        blocks = [-(-most // ranks) for most, ranks in zip(ranks_max, block_ranks, strict=True)]
        assert max(blocks) <= BLOCKS, f"{max(blocks)} blocks of ranks"
        assert ITEMS_AT + 2 * len(blocks) <= HEADER_INTS
        items = tuple(units * count for count in blocks)
        self.bounds = Counts(
            ints=HEADER_INTS + UNIT_INTS * units + sum(items),
            chunks=chunks,
            rows=tokens_max * row_adapters_max,
            items=items,
        )

    def lay_out(
        self,
        out: Ints,
        starts: NDArray[np.integer],
        slots: NDArray[np.integer],
        groups: NDArray[np.integer],
        weights: NDArray[np.float32] | None = None,
    ) -> Counts:
        """Write a step's plan to the front of ``out``, which has room for ``bounds.ints``.

        Args:
            out: int32, contiguous.
            starts: [segments + 1]; segment i is rows ``starts[i]:starts[i + 1]``, may be empty; the
                rows of the base are in none.
            slots: [segments], or [segments, adapters of a row]: there -1 past a segment's last.
            groups: [slots, sites], the groups of 8 ranks that a slot has in all modules of a site,
                in the layer that has most.
            weights: like slots, by which an adapter's update is multiplied; None means 1.
        """
        slots = slots[:, None] if slots.ndim == 1 else slots
        shape = slots.shape
        row, rows, segment = self._cut(starts)
        slots = slots[segment]  # [chunks, adapters]
        assert slots.size == 0 or slots[:, 0].min() >= 0, "a segment has no adapter"
        chunks = len(slots)
        units = chunks if slots.shape[1] == 1 else int(np.count_nonzero(slots >= 0))
        table = out[HEADER_INTS : HEADER_INTS + UNIT_INTS * units].reshape(units, UNIT_INTS)
        table[:chunks, ROW] = row
        table[:chunks, ROW_COUNT] = rows
        table[:chunks, SLOT] = slots[:, 0]
        table[:, WEIGHT] = _ONE
        table[:, NEXT] = -1
        bits = None
        if weights is not None:
            assert weights.dtype == np.float32
            bits = weights.view(np.int32).reshape(shape)[segment]
            table[:chunks, WEIGHT] = bits[:, 0]
        if units > chunks:
            _put_further(table, slots, bits)
        v_ends = np.cumsum(table[:, ROW_COUNT])
        table[:, V_ROW] = v_ends - table[:, ROW_COUNT]

        header = out[:HEADER_INTS]
        header[CHUNKS] = chunks
        header[UNITS] = units
        end = HEADER_INTS + UNIT_INTS * units
        # [units, sites], rounded up.
        blocks = (groups[table[:, SLOT]] + (self._blocks_groups - 1)) // self._blocks_groups
        items = []
        for site in range(blocks.shape[1]):
            packed = _items(blocks[:, site])
            header[ITEMS_AT + 2 * site] = end
            header[ITEMS + 2 * site] = len(packed)
            out[end : end + len(packed)] = packed
            end += len(packed)
            items.append(len(packed))
        counts = Counts(end, chunks, int(v_ends[-1]) if units else 0, tuple(items))
        assert counts.chunks <= self.bounds.chunks, f"{counts} exceeds {self.bounds}"
        assert counts.rows <= self.bounds.rows, f"{counts} exceeds {self.bounds}"
        return counts

    def _cut(
        self, starts: NDArray[np.integer]
    ) -> tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.intp]]:
        """Return the first row, the rows and the segment of each chunk."""
        lengths = np.diff(starts)
        if len(lengths) == 0 or lengths.max() <= self.chunk_rows:
            segment = np.flatnonzero(lengths)
            return starts[segment], lengths[segment], segment
        pieces = -(-lengths // self.chunk_rows)
        segment = np.repeat(np.arange(len(lengths)), pieces)
        index = np.arange(len(segment)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        row = starts[segment] + index * self.chunk_rows
        return row, np.minimum(starts[segment + 1] - row, self.chunk_rows), segment


def _put_further(table: Ints, slots: NDArray[np.integer], bits: Ints | None) -> None:
    """Write the units of each chunk's second and further adapters; both [chunks, adapters]."""
    last = np.arange(len(slots))
    free = len(slots)
    for adapter in range(1, slots.shape[1]):
        chunk = np.flatnonzero(slots[:, adapter] >= 0)
        unit = np.arange(free, free + len(chunk))
        table[unit, ROW] = table[chunk, ROW]
        table[unit, ROW_COUNT] = table[chunk, ROW_COUNT]
        table[unit, SLOT] = slots[chunk, adapter]
        if bits is not None:
            table[unit, WEIGHT] = bits[chunk, adapter]
        table[last[chunk], NEXT] = unit
        last[chunk] = unit
        free += len(chunk)


def _items(blocks: Ints) -> Ints:
    """Return ``unit * BLOCKS + block`` for all blocks of all units."""
    units = np.arange(len(blocks), dtype=np.int32) * BLOCKS
    if len(blocks) == 0 or blocks.max() <= 1:
        return units[blocks > 0]
    firsts = np.cumsum(blocks, dtype=np.int32) - blocks
    packed: Ints = np.repeat(units - firsts, blocks) + np.arange(blocks.sum(), dtype=np.int32)
    return packed
