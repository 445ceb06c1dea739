"""Which adapters lie in host memory, who pins them, and which one goes next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator
from typing import Literal, NamedTuple


class Resident(NamedTuple):
    """An adapter in host memory."""

    digest: str
    path: str
    rank: int
    size_bytes: int
    granules: int  # of the largest layer


class Bounds(NamedTuple):
    """What host memory may hold."""

    size_bytes: int  # of all adapters, those that are being read among them
    entries: int | None = None  # adapters, beside those that are kept; None: as many as fit


class HostCache:
    """Adapters within bounds; some of them stay, the others leave in the order of the policy.

    A pin is a scheduler's, for as long as its runners may read the file. Who is kept stays whatever
    else comes. Who is spared goes only if nobody else can. Room is reserved before an adapter is
    read, so that its bytes are counted from the moment at which it may begin to take them.

    Invariants, checked by ``check``: residents and reservations are within the bounds (there may be
    more entries as long as nobody can go, which happens where one is no longer kept while a pin
    holds it); pins are counted for residents only, and every count is positive; nobody with a
    reservation is there; residents are listed in the order in which they would be evicted.
    """

    def __init__(self, bounds: Bounds, policy: Literal["lru", "fifo"]) -> None:
        assert bounds.size_bytes > 0
        assert bounds.entries is None or bounds.entries > 0
        self.bounds = bounds
        self._policy = policy
        self._residents: dict[str, Resident] = {}  # first to be evicted first
        self._reserved: dict[str, int] = {}  # bytes by digest
        self._bytes = 0  # of both
        self._pins: dict[str, Counter[str]] = {}  # digest -> pins of each holder
        self._kept: set[str] = set()  # some may not be resident
        self._spared: set[str] = set()  # likewise
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
        return self._bytes - sum(self._reserved.values())

    @property
    def reserved_bytes(self) -> int:
        """Bytes for adapters that are being read."""
        return sum(self._reserved.values())

    @property
    def kept(self) -> int:
        """Adapters that stay whatever else comes."""
        return len(self._kept)

    def get(self, digest: str) -> Resident | None:
        """Return a resident, if it is one."""
        return self._residents.get(digest)

    def is_kept(self, digest: str) -> bool:
        """Whether an adapter stays whatever else comes, resident or as soon as it is."""
        return digest in self._kept

    def is_pinned(self, digest: str) -> bool:
        """Whether an adapter has a pin."""
        return digest in self._pins

    def keep(self, digest: str) -> None:
        """Let an adapter stay, resident or as soon as it is."""
        self._kept.add(digest)
        self._spared.discard(digest)

    def spare(self, digest: str) -> list[Resident]:
        """Let an adapter go after all others; return those that it takes the place of."""
        self._kept.discard(digest)
        self._spared.add(digest)
        return self.shrink()

    def let_go(self, digest: str) -> list[Resident]:
        """Neither keep nor spare an adapter; return those that it takes the place of."""
        self._kept.discard(digest)
        self._spared.discard(digest)
        return self.shrink()

    def drop(self, digest: str) -> Resident | None:
        """Remove an adapter that nobody has pinned, kept or not, and return it if it was there.

        What is reserved for it is given up.
        """
        assert digest not in self._pins, f"{digest} is pinned"
        self.give_up(digest)
        self._kept.discard(digest)
        self._spared.discard(digest)
        return self._remove(digest) if digest in self._residents else None

    def pin(self, digest: str, holder: str) -> Resident | None:
        """Pin a resident and return it; None: it has to be added first."""
        resident = self._residents.get(digest)
        if resident is not None:
            self._pins.setdefault(digest, Counter())[holder] += 1
            self._touch(digest)
        return resident

    def unpin(self, digest: str, holder: str) -> list[Resident]:
        """Take one pin away; return those that should have gone before.

        Unknown ones are ignored: they ended with their holder's former life.
        """
        pins = self._pins.get(digest)
        if pins is not None and pins[holder]:
            pins[holder] -= 1
            self._clear(digest, pins)
            self._touch(digest)
        return self.shrink()

    def unpin_all(self, holder: str) -> list[Resident]:
        """Take away every pin of a holder that is gone; return those that should have gone."""
        for digest, pins in list(self._pins.items()):
            del pins[holder]
            self._clear(digest, pins)
        return self.shrink()

    def reserve(
        self, digest: str, size_bytes: int, wanted: Container[str] = ()
    ) -> list[Resident] | None:
        """Make room for an adapter that is not there; return those that had to go for it.

        None: those that stay leave too little. With a reservation there is nothing to do.
        ``wanted`` are spared: somebody is about to ask for them.
        """
        assert digest not in self._residents, f"{digest} is there"
        if digest in self._reserved:
            return []
        if not self._can_hold(digest, size_bytes):
            return None
        self._reserved[digest] = size_bytes
        self._bytes += size_bytes
        return self.shrink(wanted)

    def is_awaited(self, digest: str) -> bool:
        """Whether there is a reservation for an adapter."""
        return digest in self._reserved

    def give_up(self, digest: str) -> None:
        """End a reservation, if there is one."""
        self._bytes -= self._reserved.pop(digest, 0)

    def add(self, resident: Resident) -> None:
        """Add an adapter for which there is a reservation, unpinned."""
        reserved = self._reserved.get(resident.digest)
        assert reserved is not None, f"nothing is reserved for {resident.digest}"
        assert resident.size_bytes <= reserved, f"{resident.size_bytes} bytes, not {reserved}"
        self.give_up(resident.digest)
        self._residents[resident.digest] = resident
        self._bytes += resident.size_bytes

    def shrink(self, wanted: Container[str] = ()) -> list[Resident]:
        """Return those that must go: as many as are too many, ``wanted`` ones last.

        To be called when those that have come are pinned for whoever waited for them. What had a
        place because it was to be kept may have lost it on its way.
        """
        gone: list[Resident] = []
        if self._is_over:
            for digest in self._evictable(wanted):
                gone.append(self._remove(digest))
                self.evictions += 1
                if not self._is_over:
                    break
        return gone

    def check(self) -> None:
        """Assert the invariants."""
        assert self._bytes <= self.bounds.size_bytes
        assert not self._is_over or not any(self._evictable())
        assert self.size_bytes == sum(r.size_bytes for r in self._residents.values())
        assert self._pins.keys() <= self._residents.keys()
        assert all(+pins for pins in self._pins.values())
        assert all(count >= 0 for pins in self._pins.values() for count in pins.values())
        assert self._reserved.keys().isdisjoint(self._residents)
        assert self._kept.isdisjoint(self._spared)

    @property
    def _places_taken(self) -> int:
        kept = sum(1 for d in self._kept if d in self._residents or d in self._reserved)
        return len(self._residents) + len(self._reserved) - kept

    @property
    def _is_over(self) -> bool:
        entries = self.bounds.entries
        if self._bytes > self.bounds.size_bytes:
            return True
        return entries is not None and self._places_taken > entries

    def _can_hold(self, digest: str, size_bytes: int) -> bool:
        """Whether those that stay leave room for one more."""
        stay = {d for d in self._kept | self._pins.keys() if d in self._residents}
        taken = sum(self._residents[d].size_bytes for d in stay) + self.reserved_bytes
        if taken + size_bytes > self.bounds.size_bytes:
            return False
        if self.bounds.entries is None or digest in self._kept:
            return True
        places = sum(d not in self._kept for d in (*self._pins, *self._reserved))
        return places < self.bounds.entries

    def _evictable(self, wanted: Container[str] = ()) -> Iterator[str]:
        free = [d for d in self._residents if d not in self._pins and d not in self._kept]
        last = [d for d in free if d in self._spared or d in wanted]
        yield from (digest for digest in free if digest not in last)
        yield from last

    def _remove(self, digest: str) -> Resident:
        resident = self._residents.pop(digest)
        self._bytes -= resident.size_bytes
        return resident

    def _clear(self, digest: str, pins: Counter[str]) -> None:
        if not +pins:
            del self._pins[digest]

    def _touch(self, digest: str) -> None:
        if self._policy == "lru":
            self._residents[digest] = self._residents.pop(digest)
