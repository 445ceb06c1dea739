"""Sequences without a row, in the order in which they are to be admitted."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Set

from weft.actors.scheduler.sequence import Sequence


class Waiting:
    """The queue, and which adapters are waited for.

    Invariants, checked by ``check``: nobody in it holds a row or pages; an adapter is counted as
    often as a sequence waits for it.
    """

    def __init__(self) -> None:
        self._sequences: OrderedDict[int, Sequence] = OrderedDict()  # by number
        self._adapters: Counter[str] = Counter()

    @property
    def adapters(self) -> Set[str]:
        """Those that some sequence waits for."""
        return self._adapters.keys()

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        """Whoever is to be admitted first comes first."""
        return iter(self._sequences.values())

    def __getitem__(self, number: int) -> Sequence:
        return self._sequences[number]

    def has(self, number: int) -> bool:
        """Whether a sequence waits."""
        return number in self._sequences

    def append(self, sequence: Sequence) -> None:
        """Let a sequence wait behind all others."""
        self._sequences[sequence.number] = sequence
        if (adapter := sequence.request.generate.adapter) is not None:
            self._adapters[adapter] += 1

    def prepend(self, sequence: Sequence) -> None:
        """Let a sequence wait before all others."""
        self.append(sequence)
        self.move_to_front(sequence.number)

    def move_to_front(self, number: int) -> None:
        """Let one that waits be the next."""
        self._sequences.move_to_end(number, last=False)

    def remove(self, sequence: Sequence) -> None:
        """Let a sequence wait no longer."""
        del self._sequences[sequence.number]
        if (adapter := sequence.request.generate.adapter) is not None:
            self._adapters[adapter] -= 1
            if self._adapters[adapter] == 0:
                del self._adapters[adapter]

    def check(self) -> None:
        """Assert the invariants."""
        assert all(s.row is None and s.holding is None for s in self)
        wanted = Counter(s.request.generate.adapter for s in self)
        del wanted[None]
        assert wanted == self._adapters
