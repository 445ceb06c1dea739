"""The state of every row between steps, and the host's view of the next batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from weft.actors.runner.sums import BASE, Floats, Ints, Sums
from weft.runtime.messages import Step


@dataclass(frozen=True)
class HostBatch:
    """One step's tokens, sorted by adapters: the base first, rows of several adapters last.

    Segment i has the adapters ``lora_slots[i]``, and is tokens ``lora_starts[i]:lora_starts[i+1]``.
    """

    # [T]; ``~row`` stands for a row's last token, if nobody has told the host.
    tokens: Ints
    positions: Ints  # [T]
    kv_slots: Ints  # [T], page * page_tokens + offset
    # [entries + 1]; entry i is tokens starts[i]:starts[i + 1]: one row's part, or a half of it.
    starts: Ints
    page_table: Ints  # [entries, pages_max]
    lora_starts: Ints  # [segments + 1]; the base's tokens are in no segment
    lora_slots: Ints  # [segments, most adapters of a row]; past a segment's own: -1
    lora_weights: Floats  # like lora_slots, by what updates are multiplied
    sampled: Ints  # [R] indices of tokens, in the order of sampled_rows
    sampled_rows: Ints  # [R], ascending
    sampled_positions: Ints  # [R], which the sampled tokens take in their sequences

    @property
    def has_adapters(self) -> bool:
        """Whether some row is not the base's."""
        return len(self.lora_slots) > 0

    @property
    def row_adapters(self) -> int:
        """The most adapters of a row."""
        return int(self.lora_slots.shape[1])

    @property
    def adapter_slots(self) -> set[int]:
        """Slots that the step reads."""
        return set(self.lora_slots.ravel().tolist()) - {-1}

    @property
    def is_decode(self) -> bool:
        """Whether every row feeds one token and samples."""
        return len(self.tokens) == len(self.sampled)


class RowTable:
    """Arrays over rows. Applies what a step changes and lays out what it computes."""

    def __init__(self, rows: int, pages_max: int, page_tokens: int, *, row_adapters: int) -> None:
        """A row has at most so many pages and adapters."""
        self._page_tokens = page_tokens
        self._page_table = np.zeros((rows, pages_max), dtype=np.int64)
        self._page_counts = np.zeros(rows, dtype=np.int64)
        self._positions = np.zeros(rows, dtype=np.int64)  # tokens whose KV has been written
        self._sums = Sums(rows, row_adapters)
        self._sum_of = np.full(rows, BASE, dtype=np.int64)  # by which rows are sorted
        self._lora_starts = np.zeros(rows, dtype=np.int64)  # positions before are the base's
        self._last_tokens = ~np.arange(rows, dtype=np.int64)
        self._joined = np.zeros(rows, dtype=bool)
        self._decoding = np.zeros(rows, dtype=bool)

    @property
    def joined(self) -> int:
        """Rows in use."""
        return int(self._joined.sum())

    @property
    def pages(self) -> int:
        """Entries of the page tables in use: a page counts once for each row that reads it."""
        return int(self._page_counts[self._joined].sum())

    @property
    def adapter_slots(self) -> set[int]:
        """Slots that some row uses."""
        return self._sums.slots

    def apply(self, step: Step) -> None:
        """Let rows leave and join, and page tables grow."""
        for row in step.leaves:
            assert self._joined[row], f"row {row} leaves and has not joined"
            self._joined[row] = self._decoding[row] = False
            self._sums.drop(int(self._sum_of[row]))
            self._sum_of[row] = BASE
        for join in step.joins:
            row = join.row
            assert not self._joined[row], f"row {row} joins twice"
            count = len(join.pages)
            self._joined[row] = True
            self._page_table[row, :count] = join.pages
            self._page_counts[row] = count
            self._positions[row] = join.position
            self._sum_of[row] = self._sums.take(join.adapters)
            self._lora_starts[row] = join.lora_start
        for row, page in zip(step.page_rows, step.page_ids, strict=True):
            self._page_table[row, self._page_counts[row]] = page
            self._page_counts[row] += 1

    def lay_out(self, step: Step) -> HostBatch | None:
        """Return the batch that the step computes, and advance the rows. None if it is empty."""
        decoding = np.flatnonzero(self._decoding)
        chunks = step.chunks
        rows = np.concatenate((decoding, np.array([c.row for c in chunks], dtype=np.int64)))
        if len(rows) == 0:
            return None
        chunk_counts = np.array([len(c.tokens) for c in chunks], dtype=np.int64)
        counts = np.concatenate((np.ones(len(decoding), dtype=np.int64), chunk_counts))
        tokens = [self._last_tokens[decoding]]
        for chunk in chunks:
            assert self._joined[chunk.row]
            assert self._positions[chunk.row] == chunk.position
            tokens.append(np.array(chunk.tokens, dtype=np.int64))
        samples = np.ones(len(rows), dtype=bool)
        samples[len(decoding) :] = [c.is_last for c in chunks]
        firsts = self._positions[rows]
        self._positions[rows] += counts
        self._decoding[rows[samples]] = True

        entries = _Entries(rows, firsts, counts, self._sum_of[rows], samples)
        of_base = np.clip(self._lora_starts[rows] - firsts, 0, counts)
        if of_base.any():
            entries = _split(entries, of_base)
        order = np.argsort(entries.sums, kind="stable")
        source = _starts(entries.counts)
        rows, firsts, counts, sums, samples = entries.at(order)
        starts = _starts(counts)
        offsets = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
        flat = np.concatenate(tokens)[np.repeat(source[:-1][order], counts) + offsets]
        positions = np.repeat(firsts, counts) + offsets
        page_index = positions // self._page_tokens
        token_rows = np.repeat(rows, counts)
        assert (page_index < self._page_counts[token_rows]).all(), "a token has no page"
        pages = self._page_table[token_rows, page_index]

        lora_starts, numbers = _segments(sums, starts)
        lora_slots, lora_weights = self._sums.tables(numbers)
        ascending = np.argsort(rows[samples])
        sampled_rows = rows[samples][ascending]
        return HostBatch(
            tokens=flat,
            positions=positions,
            kv_slots=pages * self._page_tokens + positions % self._page_tokens,
            starts=starts,
            page_table=self._page_table[rows],
            lora_starts=lora_starts,
            lora_slots=lora_slots,
            lora_weights=lora_weights,
            sampled=(starts[1:][samples] - 1)[ascending],
            sampled_rows=sampled_rows,
            sampled_positions=self._positions[sampled_rows],
        )

    def feed(self, rows: Ints, tokens: Ints) -> None:
        """Note the tokens that rows decode in the next step.

        Where the device keeps them itself, the host never does.
        """
        self._last_tokens[rows] = tokens


class _Entries(NamedTuple):
    """Tokens of a step that lie one behind the other in one row, and are computed alike."""

    rows: Ints
    firsts: Ints  # positions
    counts: Ints  # of tokens
    sums: Ints  # of adapters
    samples: NDArray[np.bool_]

    def at(self, index: NDArray[np.intp]) -> _Entries:
        """Return some of them, in this order."""
        return _Entries(
            self.rows[index],
            self.firsts[index],
            self.counts[index],
            self.sums[index],
            self.samples[index],
        )


def _split(entries: _Entries, of_base: Ints) -> _Entries:
    """Give the base the first ``of_base`` tokens of each entry; what is left is one of its own."""
    is_cut = (of_base > 0) & (of_base < entries.counts)
    index = np.repeat(np.arange(len(of_base)), 1 + is_cut)
    is_second = np.concatenate(([False], index[1:] == index[:-1]))
    is_first = np.concatenate((is_second[1:], [False]))
    rows, firsts, counts, sums, samples = entries.at(index)
    of_base = of_base[index]
    return _Entries(
        rows,
        firsts + np.where(is_second, of_base, 0),
        np.where(is_first, of_base, counts - np.where(is_second, of_base, 0)),
        np.where(is_second | (of_base == 0), sums, BASE),
        samples & ~is_first,
    )


def _starts(counts: Ints) -> Ints:
    return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts)))


def _segments(sums: Ints, starts: Ints) -> tuple[Ints, Ints]:
    """Return where runs of equal sums begin and the last one ends, and which these are.

    Without the base's.
    """
    changes = np.flatnonzero(np.diff(sums)) + 1
    firsts = np.concatenate((np.zeros(1, dtype=np.int64), changes))
    firsts = firsts[sums[firsts] != BASE]
    return np.concatenate((starts[firsts], starts[-1:])), sums[firsts]
