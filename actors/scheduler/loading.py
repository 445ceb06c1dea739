"""Brings adapters to where they are needed: to host memory, and from there to the device."""

from __future__ import annotations

from collections.abc import Container, Iterable
from itertools import islice

from weft.actors.scheduler import policy
from weft.actors.scheduler.draft import Draft
from weft.actors.scheduler.gathering import Gathering
from weft.actors.scheduler.host import HostPins
from weft.actors.scheduler.pages import Pages
from weft.actors.scheduler.sequence import Request, Rows, Sequence
from weft.actors.scheduler.slots import AdapterSlots
from weft.actors.scheduler.waiting import Waiting
from weft.runtime.messages import Acquire, Release


class Loading:
    """Which adapters a step loads, and which the store is asked for.

    First come those of whoever starts, then what one sequence gathers, what is to stay on the
    device, and what others wait for. What is not urgent takes only what nobody will soon need.
    """

    def __init__(
        self, waiting: Waiting, host: HostPins, *, slots: AdapterSlots, pages: Pages, rows: Rows
    ) -> None:
        self.gathering = Gathering(waiting, self.is_at_hand)
        self._waiting = waiting
        self._host = host
        self._slots = slots
        self._pages = pages
        self._rows = rows

    def is_at_hand(self, adapter: str) -> bool:
        """Whether an adapter is on the device, or can be loaded."""
        return adapter in self._slots.resident or self._host.get(adapter) is not None

    def pages_of(self, sequence: Sequence) -> tuple[int, ...]:
        """Return the pages of each of a sequence's adapters, as far as they are known."""
        known = sequence.request.granules
        return tuple(
            self._slots.page_count(adapter, self._host.get(adapter))
            if self.is_at_hand(adapter)
            else self._slots.pages_for(known.get(adapter, 0))
            for adapter in sequence.request.adapters
        )

    def pages_to_take(self, sequence: Sequence) -> tuple[int, ...]:
        """Return what each adapter takes of the pages that are available."""
        pages = zip(sequence.request.adapters, self.pages_of(sequence), strict=True)
        return tuple(0 if self._slots.is_held(adapter) else count for adapter, count in pages)

    def pin(self, sequences: Iterable[Sequence], draft: Draft) -> dict[str, int]:
        """Give each sequence its adapters, which are at hand; return their slots."""
        pins = [adapter for sequence in sequences for adapter in sequence.request.adapters]
        # Residents first, so that nobody's load or prompt evicts what another is about to use.
        pins.sort(key=lambda adapter: adapter not in self._slots.resident)
        slots = {}
        for adapter in pins:
            if adapter not in self._slots.resident:
                self._load(adapter, draft)
            slots[adapter] = self._slots.pin(adapter, draft.number)
        return slots

    def load(self, draft: Draft, lacking: list[int], *, alone: Request | None) -> None:
        """Load what nobody starts with yet; ``alone`` has the device to itself.

        ``lacking`` are sequences that lack adapters, the most urgent first.
        """
        self.gathering.take_turns(lacking)
        self._load_gathered(draft)
        if alone is None:
            self._load_those_that_stay(draft)
        if draft.computes and alone is None:
            self._load_ahead(draft)

    def host_messages(
        self, lacking: list[int], steps_done: int, *, alone: Request | None
    ) -> list[Acquire | Release]:
        """Return what the adapter store must be told; ``steps_done`` is the first not answered."""
        messages: list[Acquire | Release] = []
        missing = self._slots.missing
        if len(self._host):
            needed: set[str] = {*(self._waiting.adapters - self._slots.resident)}
            if self._waiting.several:
                needed = set(filter(self.gathering.may_hold, needed))
            needed.update(missing)
            if alone is not None:  # the others keep no room from it
                needed.intersection_update(alone.adapters)
            messages += self._host.release(needed, steps_done)
        for digest in self.gathering.wanted(lacking):
            messages += self._host.want(digest)
        if alone is not None:
            return messages
        for digest in (*self._waited_for(), *missing):
            if not self._host.has_room_ahead:
                break
            messages += self._host.want(digest)
        return messages

    def _waited_for(self) -> list[str]:
        """Return adapters of waiting sequences that are not on the device, longest waited first."""
        resident = self._slots.resident
        waited_for = islice(self._waiting.adapters, policy.LOOK_AHEAD)
        absent = [adapter for adapter in waited_for if adapter not in resident]
        return list(filter(self.gathering.may_hold, absent)) if self._waiting.several else absent

    def _load_gathered(self, draft: Draft) -> None:
        """Make room in host memory for the rest of what a sequence gathers."""
        own = self.gathering.adapters
        for adapter in own:
            acquired = self._host.get(adapter)
            if acquired is None or adapter in self._slots.resident:
                continue
            room = self._pages.available - len(self._rows) // 2
            room -= sum(self._slots.page_count(each, None) for each in self._slots.idle & {*own})
            if not (self._slots.has_free or self._slots.idle - {*own}):
                return
            if room >= self._slots.page_count(adapter, acquired):
                self._load(adapter, draft, keep=own)

    def _load_those_that_stay(self, draft: Draft) -> None:
        """Put adapters on the device that are to stay there, in place of who is idle."""
        room = self._pages.available - len(self._rows)  # what running sequences will soon grow by
        for adapter in self._slots.missing:
            acquired = self._host.get(adapter)
            if acquired is None or len(draft.loads) >= policy.LOADS_MAX:
                continue
            room -= self._slots.page_count(adapter, acquired)
            if room < 0:
                return
            self._load(adapter, draft)
        self._slots.hold()

    def _load_ahead(self, draft: Draft) -> None:
        """Put adapters that are waited for where nobody is, beside what the step computes."""
        free = self._pages.free - len(self._rows) // 2  # what running sequences will soon grow by
        for adapter in self._waited_for():
            if len(draft.loads) >= policy.LOADS_MAX or not self._slots.has_free:
                return
            acquired = self._host.get(adapter)
            if acquired is None:
                continue
            free -= self._slots.page_count(adapter, acquired)
            if free < 0:
                return
            self._load(adapter, draft)

    def _load(self, adapter: str, draft: Draft, *, keep: Container[str] = ()) -> None:
        read = self._host.read(adapter, draft.number)
        draft.loads.append(self._slots.load(read, draft.number, keep=keep))
