"""Adapters on the device: the pages they own, the slots that name them, and who uses them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterator, Set
from dataclasses import dataclass
from typing import Literal

from weft.actors.scheduler.pages import Pages
from weft.runtime.messages import Acquired, AdapterLoad


@dataclass(eq=False, slots=True)
class Resident:
    """An adapter on the device."""

    digest: str
    slot: int
    pages: list[int]
    table: AdapterSlots
    pins: int = 0  # running sequences
    is_held: bool = False  # though nobody uses it
    pinned_step: int = 0  # since when there has been a pin
    loading_step: int | None = None  # that began to copy it, until it is known to be there

    @property
    def page_count(self) -> int:
        """Pages that hold its weights."""
        return len(self.pages)

    @property
    def is_busy(self) -> bool:
        """Whether its pages are nobody else's to take."""
        return self.pins > 0 or self.is_held

    def evict(self) -> list[int]:
        """Leave the table."""
        assert not self.is_busy
        self.table.forget(self)
        return self.pages


class AdapterSlots:
    """A table of the adapters on the device; a slot is an entry of it, not memory.

    An adapter stays until its pages are needed, or its slot. It is idle while no running sequence
    uses it; with the policy "lru" it then goes to the end of the pool's order, with "fifo" it keeps
    the place that it was given when it was loaded. Runners execute steps in order, so whoever gets
    a slot or a page of an adapter overwrites it after the last step that used it.

    Some adapters are to stay though nobody uses them, and are *held* once they are there. They are
    few enough to leave room for a batch, but where a single sequence needs even their pages,
    ``relent`` lets them go, and ``hold`` takes back those that are still there.

    Invariants, checked by ``check``:
      * every slot is free or names one adapter, and no adapter is in two;
      * adapters are idle unless pinned or held, and held only if they are to stay.
    """

    def __init__(
        self, slots: int, pages: Pages, *, page_granules: int, policy: Literal["lru", "fifo"]
    ) -> None:
        assert slots > 0
        assert page_granules > 0
        self.count = slots
        self.evictions = 0
        self._pages = pages
        self._page_granules = page_granules
        self._keeps_place = policy == "fifo"
        self._free = list(range(slots - 1, -1, -1))
        self._residents: OrderedDict[str, Resident] = OrderedDict()  # in the pool's order
        self._pinned: dict[str, Resident] = {}
        self._staying: list[str] = []  # digests
        self._held: dict[str, Resident] = {}
        self._loading: dict[int, Resident] = {}  # by slot

    @property
    def pinned(self) -> Set[str]:
        """Adapters that running sequences use."""
        return self._pinned.keys()

    @property
    def pinned_since(self) -> dict[str, int]:
        """Adapters that running sequences use, and the step since which some sequence has."""
        return {digest: resident.pinned_step for digest, resident in self._pinned.items()}

    @property
    def resident(self) -> Set[str]:
        """Adapters on the device."""
        return self._residents.keys()

    @property
    def changes(self) -> int:
        """How often an adapter has come or gone."""
        return len(self._residents) + 2 * self.evictions

    @property
    def idle(self) -> Set[str]:
        """Adapters that may be evicted."""
        return self.resident - self._pinned.keys() - self._held.keys()

    @property
    def pin_count(self) -> int:
        """Running sequences that use an adapter."""
        return sum(resident.pins for resident in self._pinned.values())

    @property
    def has_free(self) -> bool:
        """Whether one more adapter needs no other's slot."""
        return bool(self._free)

    @property
    def pages_owned(self) -> int:
        """Pages of all adapters."""
        return sum(resident.page_count for resident in self._residents.values())

    @property
    def pages_idle(self) -> int:
        """Pages of adapters that may be evicted."""
        busy = self._pinned | self._held
        return self.pages_owned - sum(resident.page_count for resident in busy.values())

    @property
    def pages_held(self) -> int:
        """Pages of adapters that nobody uses and that are there to stay."""
        return sum(resident.page_count for resident in self._held.values() if not resident.pins)

    @property
    def held(self) -> int:
        """Adapters that are there to stay."""
        return len(self._held)

    @property
    def missing(self) -> list[str]:
        """Adapters that are to stay, and are not there."""
        return [digest for digest in self._staying if digest not in self._residents]

    def is_held(self, digest: str) -> bool:
        """Whether an adapter is there to stay."""
        return digest in self._held

    def stay(self, digests: list[str]) -> None:
        """Let these adapters stay from now on, wherever they are, and no others."""
        self._staying = digests
        for digest, resident in list(self._held.items()):
            if digest not in digests:
                self._set_held(resident, is_held=False)
        self.hold()

    def hold(self) -> None:
        """Hold those that are there to stay."""
        for digest in self._staying:
            resident = self._residents.get(digest)
            if resident is not None and not resident.is_held:
                self._set_held(resident, is_held=True)

    def relent(self) -> bool:
        """Let the pages of those that nobody uses be taken after all: are there any?"""
        held = list(self._held.values())
        for resident in held:
            self._set_held(resident, is_held=False)
        return any(not resident.is_busy for resident in held)

    def page_count(self, digest: str, acquired: Acquired | None) -> int:
        """Return how many pages an adapter takes that is on the device or was acquired."""
        resident = self._residents.get(digest)
        if resident is not None:
            return resident.page_count
        assert acquired is not None, f"{digest} is nowhere"
        return self.pages_for(acquired.granules)

    def pages_for(self, granules: int) -> int:
        """Return how many pages hold that many granules of each layer."""
        return -(-granules // self._page_granules)

    def is_loading(self, digest: str) -> bool:
        """Whether a step that uses it may have to wait for its copy."""
        return self._residents[digest].loading_step is not None

    def copied(self, step: int, loading: Container[int]) -> None:
        """Hear that at the end of ``step`` only the slots of ``loading`` were not there yet."""
        for slot, resident in list(self._loading.items()):
            assert resident.loading_step is not None
            if resident.loading_step <= step and slot not in loading:
                self._end_loading(resident)

    def load(self, acquired: Acquired, step: int, *, keep: Container[str] = ()) -> AdapterLoad:
        """Give an adapter pages and a slot in ``step``. It is idle; there must be room for it.

        The slot is not one of those that ``keep`` names.
        """
        if not self._free:
            residents = self._residents.values()
            idle = (r for r in residents if not r.is_busy and r.digest not in keep)
            self._pages.evict(next(idle))
        pages = self._pages.take(self.page_count(acquired.digest, acquired))
        resident = Resident(acquired.digest, self._free.pop(), pages, self)
        self._residents[acquired.digest] = resident
        resident.loading_step = step
        self._loading[resident.slot] = resident
        self._pages.make_idle(resident)
        return AdapterLoad(resident.slot, acquired.digest, acquired.path, pages)

    def pin(self, digest: str, step: int) -> int:
        """Return the slot to one more sequence, which runs from ``step`` on."""
        resident = self._residents[digest]
        if resident.pins == 0:
            if not resident.is_held:
                self._pages.make_busy(resident, keeps_place=self._keeps_place)
            resident.pinned_step = step
            self._pinned[digest] = resident
        resident.pins += 1
        return resident.slot

    def unpin(self, digest: str) -> None:
        """Give back what one running sequence had pinned."""
        resident = self._residents[digest]
        assert resident.pins > 0
        resident.pins -= 1
        if resident.pins == 0:
            del self._pinned[digest]
            if not resident.is_held:
                self._make_idle(resident)

    def drop(self, digest: str) -> None:
        """Take an adapter off the device that nobody uses, if it is there."""
        resident = self._residents.get(digest)
        if resident is not None:
            self._set_held(resident, is_held=False)
            self._pages.evict(resident)

    def forget(self, resident: Resident) -> None:
        """Take an adapter off the table, whose pages the pool takes back."""
        del self._residents[resident.digest]
        if resident.loading_step is not None:
            self._end_loading(resident)
        self._free.append(resident.slot)
        self.evictions += 1

    def owned(self) -> Iterator[int]:
        """Yield every page of an adapter, once."""
        for resident in self._residents.values():
            yield from resident.pages

    def check(self) -> None:
        """Assert the invariants."""
        taken = [resident.slot for resident in self._residents.values()]
        assert sorted(self._free + taken) == list(range(self.count))
        idle = [tenant for tenant in self._pages.order if isinstance(tenant, Resident)]
        assert idle == [resident for resident in self._residents.values() if not resident.is_busy]
        held = {digest: r for digest, r in self._residents.items() if r.is_held}
        assert held == self._held
        assert held.keys() <= set(self._staying)
        loading = [r for r in self._residents.values() if r.loading_step is not None]
        assert self._loading == {resident.slot: resident for resident in loading}
        for digest, resident in self._residents.items():
            assert resident.digest == digest
            assert (resident.pins > 0) == (digest in self._pinned)
        assert self._pinned.keys() <= self._residents.keys()

    def _end_loading(self, resident: Resident) -> None:
        del self._loading[resident.slot]
        resident.loading_step = None

    def _set_held(self, resident: Resident, *, is_held: bool) -> None:
        was_busy = resident.is_busy
        resident.is_held = is_held
        if is_held:
            self._held[resident.digest] = resident
        else:
            self._held.pop(resident.digest, None)
        if resident.is_busy and not was_busy:
            self._pages.make_busy(resident, keeps_place=self._keeps_place)
        elif was_busy and not resident.is_busy:
            self._make_idle(resident)

    def _make_idle(self, resident: Resident) -> None:
        self._pages.make_idle(resident)
        if not self._keeps_place:
            self._residents.move_to_end(resident.digest)
