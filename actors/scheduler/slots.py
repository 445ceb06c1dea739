"""Adapter slots of the device, and the pins that keep an adapter's weights in host memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from weft.runtime.messages import Acquire, Acquired, AdapterLoad, Release


@dataclass(slots=True)
class Slot:
    """One device slot: which adapter's weights it holds, and since which step."""

    digest: str
    loaded_step: int
    used: int  # position in the order of use
    pins: int = 0  # running sequences
    pinned_step: int = 0  # since when there has been a pin


class AdapterSlots:
    """Which adapter is where: asked for, in host memory, on the device.

    An adapter is acquired from the store (pinned in host memory) when a waiting sequence needs it
    and released when it has left the device and nobody waits. Slots are overwritten, never
    cleared: an adapter stays on the device until another needs its slot.

    Invariants, checked by ``check``:
      * no digest is in two slots; every digest in a slot is acquired;
      * at most ``held_max`` digests are asked for or acquired.
    """

    def __init__(self, slots: int, *, held_max: int, policy: Literal["lru", "fifo"]) -> None:
        assert held_max > slots > 0, "room is needed to fetch the next adapter"
        self.count = slots
        self.evictions = 0
        self._held_max = held_max
        self._policy = policy
        self._slots: list[Slot | None] = [None] * slots
        self._by_digest: dict[str, int] = {}
        self._host: dict[str, Acquired | None] = {}  # None: asked for, not there yet
        self._uses = 0

    @property
    def pinned(self) -> frozenset[str]:
        """Adapters that running sequences use."""
        return frozenset(self.pinned_since)

    @property
    def pinned_since(self) -> dict[str, int]:
        """Adapters that running sequences use, and the step since which some sequence has."""
        return {slot.digest: slot.pinned_step for slot in self._slots if slot and slot.pins}

    @property
    def resident(self) -> frozenset[str]:
        """Adapters on the device."""
        return frozenset(self._by_digest)

    @property
    def held(self) -> int:
        """Adapters asked for or pinned in host memory."""
        return len(self._host)

    @property
    def holds_more_than_resident(self) -> bool:
        """Whether some adapter is held in host memory and not on the device."""
        return len(self._host) > len(self._by_digest)

    @property
    def pin_count(self) -> int:
        """Running sequences that use an adapter."""
        return sum(slot.pins for slot in self._slots if slot)

    def is_ready(self, digest: str) -> bool:
        """Whether the weights are in host memory, so that a slot can be filled."""
        return self._host.get(digest) is not None

    def want(self, digest: str) -> list[Acquire]:
        """Ask the store for an adapter, once, if there is room to hold it."""
        if digest in self._host or len(self._host) >= self._held_max:
            return []
        self._host[digest] = None
        return [Acquire(digest)]

    def arrived(self, acquired: Acquired) -> None:
        """Note that the store pinned the weights."""
        assert self._host[acquired.digest] is None, f"{acquired.digest} arrived twice"
        self._host[acquired.digest] = acquired

    def failed(self, digest: str) -> None:
        """Note that the store cannot provide the weights."""
        assert self._host.pop(digest) is None

    def pin(self, digest: str, step: int, steps_done: int) -> tuple[int, list[AdapterLoad]] | None:
        """Take a slot for one more running sequence: the slot, and the load it needs in ``step``.

        None if every slot is in use. ``steps_done`` is the number of the first unfinished step.
        """
        loads: list[AdapterLoad] = []
        index = self._by_digest.get(digest)
        if index is None:
            index = self._free_slot(steps_done)
            if index is None:
                return None
            loads = [self._fill(index, digest, step)]
        slot = self._slots[index]
        assert slot is not None
        if slot.pins == 0:
            slot.pinned_step = step
        slot.pins += 1
        if self._policy == "lru":
            self._uses += 1
            slot.used = self._uses
        return index, loads

    def unpin(self, digest: str) -> None:
        """Give back what one running sequence had pinned."""
        slot = self._slots[self._by_digest[digest]]
        assert slot is not None
        assert slot.pins > 0
        slot.pins -= 1

    def release_unused(self, waiting: frozenset[str]) -> list[Release]:
        """Unpin in host memory what is neither on the device nor waited for."""
        unused = [
            digest
            for digest, acquired in self._host.items()
            if acquired and digest not in self._by_digest and digest not in waiting
        ]
        for digest in unused:
            del self._host[digest]
        return [Release(digest) for digest in unused]

    def check(self) -> None:
        """Assert the invariants."""
        digests = [slot.digest for slot in self._slots if slot]
        assert len(digests) == len(set(digests))
        assert set(digests) == set(self._by_digest)
        assert all(self.is_ready(digest) for digest in digests)
        assert len(self._host) <= self._held_max
        assert all(slot.pins >= 0 for slot in self._slots if slot)

    def _free_slot(self, steps_done: int) -> int | None:
        candidates: list[tuple[int, int]] = []
        for index, slot in enumerate(self._slots):
            if slot is None:
                return index
            # The runner reads the weights when it gets to the step: until then they stay.
            if slot.pins == 0 and slot.loaded_step < steps_done:
                candidates.append((slot.used, index))
        return min(candidates)[1] if candidates else None

    def _fill(self, index: int, digest: str, step: int) -> AdapterLoad:
        old = self._slots[index]
        if old is not None:
            del self._by_digest[old.digest]
            self.evictions += 1
        acquired = self._host[digest]
        assert acquired is not None, f"{digest} is not in host memory"
        self._uses += 1
        self._slots[index] = Slot(digest, loaded_step=step, used=self._uses)
        self._by_digest[digest] = index
        return AdapterLoad(index, digest, acquired.path, [])
