"""A step while it is composed, and once it is."""

from __future__ import annotations

from dataclasses import dataclass, field

from weft.actors.scheduler.sequence import Sequence
from weft.runtime.messages import AdapterLoad, Chunk, Join, Step


@dataclass(frozen=True, slots=True)
class Composed:
    """A step to send, and what its answer will mean."""

    step: Step
    sampled: list[Sequence]  # in the order of the answer's tokens
    computed: list[tuple[Sequence, int]]  # prefilled sequences, and how far
    admitted: list[Sequence]

    @property
    def sequences(self) -> list[Sequence]:
        """Everyone for whom it does something; some are there more than once."""
        return [*self.sampled, *(sequence for sequence, _ in self.computed), *self.admitted]


@dataclass(slots=True)
class Draft:
    """A step in the making."""

    number: int
    tokens_left: int
    loads: list[AdapterLoad] = field(default_factory=list)
    joins: list[Join] = field(default_factory=list)
    page_rows: list[int] = field(default_factory=list)
    page_ids: list[int] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    sampled: list[Sequence] = field(default_factory=list)
    computed: list[Sequence] = field(default_factory=list)  # in this step, a prompt or part of it
    admitted: list[Sequence] = field(default_factory=list)
    preempted: int = 0

    @property
    def computes(self) -> bool:
        """Whether there is anything that takes time."""
        return bool(self.sampled or self.chunks)

    def forget_pages(self, victim: Sequence) -> None:
        """Take out the page that a sequence got before it was preempted."""
        kept = [
            (row, page)
            for row, page in zip(self.page_rows, self.page_ids, strict=True)
            if row != victim.row
        ]
        self.page_rows = [row for row, _ in kept]
        self.page_ids = [page for _, page in kept]

    def finish(self, leaves: list[int]) -> Composed | None:
        """Return the step, in which ``leaves`` are the rows that leave; None: nothing is to do."""
        if not (self.sampled or self.chunks or self.joins or self.loads or leaves):
            return None
        step = Step(
            self.number,
            self.loads,
            leaves,
            self.joins,
            self.page_rows,
            self.page_ids,
            self.chunks,
        )
        computed = [(sequence, sequence.computed) for sequence in self.computed]
        return Composed(step, sorted(self.sampled, key=_row), computed, self.admitted)


def _row(sequence: Sequence) -> int:
    assert sequence.row is not None
    return sequence.row
