"""Which adapters lie in host memory, who pins them, and which one goes next."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Resident(NamedTuple):
    """An adapter in host memory."""

    digest: str
    path: str
    rank: int
    size_bytes: int
    granules: int  # of the largest layer


class HostCache:
    """At most ``entries_max`` adapters; those with pins stay.

    Invariants, checked by ``check``: pins are counted for residents only, and every count is
    positive; residents are listed in the order in which they would be evicted.
    """

    def __init__(self, entries_max: int, policy: Literal["lru", "fifo"]) -> None:
        assert entries_max > 0
        self._entries_max = entries_max
        self._policy = policy
        self._residents: dict[str, Resident] = {}  # first to be evicted first
        self._pins: dict[str, int] = {}
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._residents)

    @property
    def pinned(self) -> int:
        """Adapters with a pin."""
        return len(self._pins)

    @property
    def size_bytes(self) -> int:
        """Bytes of all residents."""
        return sum(resident.size_bytes for resident in self._residents.values())

    @property
    def has_room(self) -> bool:
        """Whether ``victims`` can make place for one more."""
        return len(self._residents) < self._entries_max or self.pinned < len(self._residents)

    def is_pinned(self, digest: str) -> bool:
        """Whether an adapter has a pin."""
        return digest in self._pins

    def pin(self, digest: str) -> Resident | None:
        """Pin a resident and return it; None: it has to be added first."""
        resident = self._residents.get(digest)
        if resident is not None:
            self._pins[digest] = self._pins.get(digest, 0) + 1
            self._touch(digest)
        return resident

    def unpin(self, digest: str) -> None:
        """Take one pin away. Unknown digests are ignored: their pins ended with their holder."""
        pins = self._pins.pop(digest, 0)
        if pins > 1:
            self._pins[digest] = pins - 1
        if pins > 0:
            self._touch(digest)

    def unpin_all(self) -> None:
        """Take every pin away: their holder is gone."""
        self._pins.clear()

    def victims(self) -> list[Resident]:
        """Remove and return what must go before one more is added; ``has_room`` must hold."""
        gone = []
        while len(self._residents) >= self._entries_max:
            digest = next(digest for digest in self._residents if digest not in self._pins)
            gone.append(self._residents.pop(digest))
            self.evictions += 1
        return gone

    def add(self, resident: Resident) -> None:
        """Add an adapter, unpinned."""
        assert resident.digest not in self._residents
        assert len(self._residents) < self._entries_max
        self._residents[resident.digest] = resident

    def check(self) -> None:
        """Assert the invariants."""
        assert len(self._residents) <= self._entries_max
        assert self._pins.keys() <= self._residents.keys()
        assert all(count > 0 for count in self._pins.values())

    def _touch(self, digest: str) -> None:
        if self._policy == "lru":
            self._residents[digest] = self._residents.pop(digest)
