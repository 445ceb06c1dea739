"""Which adapters lie in host memory, who pins them, and which one goes next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal, NamedTuple


class Resident(NamedTuple):
    """An adapter in host memory."""

    digest: str
    path: str
    rank: int
    size_bytes: int
    granules: int  # of the largest layer


class HostCache:
    """At most ``entries_max`` adapters, and those that are kept beside them; pinned ones stay.

    A pin is a scheduler's, for as long as its runners may read the file. Who is kept stays whatever
    else comes, and takes no place of the others: so what is kept never makes a pin wait.

    Invariants, checked by ``check``: pins are counted for residents only, and every count is
    positive; residents are listed in the order in which they would be evicted.
    """

    def __init__(self, entries_max: int, policy: Literal["lru", "fifo"]) -> None:
        assert entries_max > 0
        self._entries_max = entries_max
        self._policy = policy
        self._residents: dict[str, Resident] = {}  # first to be evicted first
        self._pins: dict[str, Counter[str]] = {}  # digest -> pins of each holder
        self._kept: set[str] = set()  # some may not be resident
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
        return self._places_taken < self._entries_max or any(self._evictable())

    def get(self, digest: str) -> Resident | None:
        """Return a resident, if it is one."""
        return self._residents.get(digest)

    @property
    def kept(self) -> int:
        """Adapters that stay whatever else comes."""
        return len(self._kept)

    def is_kept(self, digest: str) -> bool:
        """Whether an adapter stays whatever else comes, resident or as soon as it is."""
        return digest in self._kept

    def keep(self, digest: str) -> None:
        """Let an adapter stay, resident or as soon as it is."""
        self._kept.add(digest)

    def keep_no_longer(self, digest: str) -> list[Resident]:
        """Let an adapter be evicted; return those that have to go as it takes a place again."""
        self._kept.discard(digest)
        return self._shrink(self._entries_max)

    def drop(self, digest: str) -> Resident | None:
        """Remove an adapter that nobody has pinned, kept or not, and return it if it was there."""
        assert digest not in self._pins, f"{digest} is pinned"
        self._kept.discard(digest)
        return self._residents.pop(digest, None)

    def is_pinned(self, digest: str) -> bool:
        """Whether an adapter has a pin."""
        return digest in self._pins

    @property
    def places_pinned(self) -> int:
        """Adapters with a pin that are not kept: places that cannot be taken."""
        return sum(1 for digest in self._pins if digest not in self._kept)

    def pin(self, digest: str, holder: str) -> Resident | None:
        """Pin a resident and return it; None: it has to be added first."""
        resident = self._residents.get(digest)
        if resident is not None:
            self._pins.setdefault(digest, Counter())[holder] += 1
            self._touch(digest)
        return resident

    def unpin(self, digest: str, holder: str) -> None:
        """Take one pin away. Unknown ones are ignored: they ended with a holder's former life."""
        pins = self._pins.get(digest)
        if pins is None or not pins[holder]:
            return
        pins[holder] -= 1
        if not +pins:
            del self._pins[digest]
        self._touch(digest)

    def unpin_all(self, holder: str) -> None:
        """Take away every pin of a holder that is gone."""
        for digest, pins in list(self._pins.items()):
            del pins[holder]
            if not +pins:
                del self._pins[digest]

    def victims(self) -> list[Resident]:
        """Remove and return what must go before one more is added; ``has_room`` must hold."""
        return self._shrink(self._entries_max - 1)

    def add(self, resident: Resident) -> None:
        """Add an adapter, unpinned."""
        assert resident.digest not in self._residents
        assert resident.digest in self._kept or self._places_taken < self._entries_max
        self._residents[resident.digest] = resident

    def check(self) -> None:
        """Assert the invariants."""
        assert self._places_taken <= self._entries_max
        assert self._pins.keys() <= self._residents.keys()
        assert all(+pins for pins in self._pins.values())
        assert all(count >= 0 for pins in self._pins.values() for count in pins.values())

    @property
    def _places_taken(self) -> int:
        return sum(1 for digest in self._residents if digest not in self._kept)

    def _evictable(self) -> Iterator[str]:
        return (d for d in self._residents if d not in self._pins and d not in self._kept)

    def _shrink(self, places: int) -> list[Resident]:
        gone = []
        while self._places_taken > places:
            digest = next(self._evictable())
            gone.append(self._residents.pop(digest))
            self.evictions += 1
        return gone

    def _touch(self, digest: str) -> None:
        if self._policy == "lru":
            self._residents[digest] = self._residents.pop(digest)
