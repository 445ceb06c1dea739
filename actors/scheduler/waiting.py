"""Sequences without a row, in the order in which they are to be admitted."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from weft.actors.scheduler import fair
from weft.actors.scheduler.accounts import Account
from weft.actors.scheduler.policy import LOOK_AHEAD
from weft.actors.scheduler.sequence import Sequence


@dataclass(eq=False, slots=True)
class _Line:
    """Those of one tenant, the most urgent first; with the policy "fcfs" those of all."""

    tenant: Account
    entries: list[tuple[int, int]] = field(default_factory=list)  # urgency and number


class Waiting:
    """The queue, and which adapters are waited for.

    Who has been put first (preempted, or starved by others) comes first. The rest are in order of
    urgency, and with the policy "vtc" each tenant has a line of its own: whose counter is the least
    comes next.

    Invariants, checked by ``check``: nobody in it holds a row or pages; everyone is in one line or
    was put first; everyone is noted under each of their adapters.
    """

    def __init__(self, policy: Literal["vtc", "fcfs"] = "vtc") -> None:
        self._is_fair = policy == "vtc"
        self._sequences: dict[int, Sequence] = {}  # by number
        self._first: OrderedDict[int, None] = OrderedDict()
        self._lines: dict[str, _Line] = {}  # by tenant
        self._last: Account | None = None  # whose line was the last to end
        self._waits_of: Counter[str] = Counter()  # sequences by tenant
        self.several = 0  # sequences that wait for more than one adapter
        # Those in lines and those put first, by each of their adapters, or None for the base; dicts
        # keep the order of arrival.
        self._of_adapter: dict[str | None, dict[int, None]] = {}

    @property
    def adapters(self) -> Set[str]:
        """Those that some sequence waits for, the one waited for longest first."""
        return dict.fromkeys(each for each in self._of_adapter if each is not None).keys()

    def all_of(self, adapter: str) -> Iterator[Sequence]:
        """Yield those that wait for an adapter."""
        return map(self._sequences.__getitem__, self._of_adapter.get(adapter, ()))

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        """Every sequence, in no order."""
        return iter(self._sequences.values())

    def __getitem__(self, number: int) -> Sequence:
        return self._sequences[number]

    def has(self, number: int) -> bool:
        """Whether a sequence waits."""
        return number in self._sequences

    def count(self, tenant: str) -> int:
        """Return how many of a tenant's sequences wait."""
        return self._waits_of[tenant]

    def room_for(self, tenant: str, queued_max: int) -> int:
        """Return how many more of a tenant's sequences may wait, where so many may in all."""
        if not self._is_fair:
            return queued_max - len(self)
        tenants = len(self._waits_of.keys() | {tenant})
        return fair.queue_room(queued_max, len(self), self.count(tenant), tenants)

    @property
    def first(self) -> Iterator[Sequence]:
        """Those that wait before all others, in order."""
        return map(self._sequences.__getitem__, self._first)

    def in_order(
        self, tokens: Callable[[Sequence], int], *, adapters: frozenset[str] | None = None
    ) -> Iterator[Sequence]:
        """Whoever is to be admitted first comes first; if ``adapters`` is given, of those that need
        no other.

        ``tokens`` says how many a sequence has to compute; it is asked as ``fair.merge`` asks.
        """
        sequences = self._sequences
        for number in self._first:
            if adapters is None or adapters.issuperset(sequences[number].request.adapters):
                yield sequences[number]
        lines = self._lines if adapters is None else self._lines_with(adapters)
        lanes = map(_lane, sorted(lines.values(), key=_counter))
        for number in fair.merge(lanes, lambda number: tokens(sequences[number])):
            yield sequences[number]

    def append(self, sequence: Sequence) -> None:
        """Let a sequence wait behind those of its tenant that are as urgent."""
        self._note(sequence)
        tenant = sequence.request.tenant
        line = self._lines.get(self._line_of(sequence))
        if line is None:
            if self._is_fair:
                counters = [other.tenant.counter for other in self._lines.values()]
                last = self._last.counter if self._last else 0.0
                tenant.counter = fair.lifted(tenant.counter, counters, last)
            line = self._lines[self._line_of(sequence)] = _Line(tenant)
        insort(line.entries, _entry(sequence))

    def prepend(self, sequence: Sequence) -> None:
        """Let a sequence wait before all others."""
        self._note(sequence)
        self._put_first(sequence.number)

    def move_to_front(self, number: int) -> None:
        """Let one that waits be the next."""
        if number not in self._first:
            self._leave_line(self._sequences[number])
        self._put_first(number)

    def remove(self, sequence: Sequence) -> None:
        """Let a sequence wait no longer."""
        del self._sequences[sequence.number]
        if sequence.number in self._first:
            del self._first[sequence.number]
        else:
            self._leave_line(sequence)
        tenant = sequence.request.tenant.name
        self._waits_of[tenant] -= 1
        if self._waits_of[tenant] == 0:
            del self._waits_of[tenant]
        self.several -= len(sequence.request.adapters) > 1
        for adapter in _noted_under(sequence):
            del self._of_adapter[adapter][sequence.number]
            if not self._of_adapter[adapter]:
                del self._of_adapter[adapter]

    def check(self) -> None:
        """Assert the invariants."""
        assert all(s.row is None and s.holding is None for s in self)
        found = {(n, adapter) for adapter, numbers in self._of_adapter.items() for n in numbers}
        assert found == {(s.number, adapter) for s in self for adapter in _noted_under(s)}
        assert all(self._of_adapter.values())
        assert self.several == sum(len(s.request.adapters) > 1 for s in self)
        assert Counter(s.request.tenant.name for s in self) == self._waits_of
        lined = [number for line in self._lines.values() for _, number in line.entries]
        assert sorted([*lined, *self._first]) == sorted(self._sequences)
        for key, line in self._lines.items():
            assert line.entries == sorted(line.entries) != []
            for entry in line.entries:
                sequence = self._sequences[entry[1]]
                assert (self._line_of(sequence), _entry(sequence)) == (key, entry)

    def _note(self, sequence: Sequence) -> None:
        self._sequences[sequence.number] = sequence
        self._waits_of[sequence.request.tenant.name] += 1
        self.several += len(sequence.request.adapters) > 1
        for adapter in _noted_under(sequence):
            self._of_adapter.setdefault(adapter, {})[sequence.number] = None

    def _put_first(self, number: int) -> None:
        self._first[number] = None
        self._first.move_to_end(number, last=False)

    def _leave_line(self, sequence: Sequence) -> None:
        key = self._line_of(sequence)
        line = self._lines[key]
        del line.entries[bisect_left(line.entries, _entry(sequence))]
        if not line.entries:
            self._last = line.tenant
            del self._lines[key]

    def _lines_with(self, adapters: frozenset[str]) -> dict[str, _Line]:
        """Return lines of those alone that need no other adapters; some of each, if many."""
        found: dict[int, Sequence] = {}
        for adapter in (*adapters, None):
            noted = map(self._sequences.__getitem__, self._of_adapter.get(adapter, ()))
            usable = (s for s in noted if adapters.issuperset(s.request.adapters))
            some = islice(usable, LOOK_AHEAD // (len(adapters) + 1) + 1)
            found.update((sequence.number, sequence) for sequence in some)
        lines: dict[str, _Line] = {}
        for sequence in found.values():
            if sequence.number not in self._first:
                line = lines.setdefault(self._line_of(sequence), _Line(sequence.request.tenant))
                line.entries.append(_entry(sequence))
        for line in lines.values():
            line.entries.sort()
        return lines

    def _line_of(self, sequence: Sequence) -> str:
        return sequence.request.tenant.name if self._is_fair else ""


def _noted_under(sequence: Sequence) -> tuple[str | None, ...]:
    return sequence.request.adapters or (None,)


def _entry(sequence: Sequence) -> tuple[int, int]:
    request = sequence.request
    return fair.urgency_ns(request.accepted_ns, request.generate.priority), sequence.number


def _lane(line: _Line) -> fair.Lane:
    tenant = line.tenant
    return fair.Lane(tenant.counter, tenant.input_price, (number for _, number in line.entries))


def _counter(line: _Line) -> float:
    return line.tenant.counter
