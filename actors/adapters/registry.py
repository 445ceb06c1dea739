"""Names of adapters, and the content that each one means: name -> version -> digest."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from weft.actors.adapters.loader import Facts
from weft.runtime.messages import AdapterEntry, Catalog

# Of the 32 MiB that a frame holds. A weight may be a few kilobytes less than what it stands for.
CATALOG_BYTES_MAX = 8 * 1024 * 1024

# A name, a path and a reason.
_ENTRY_BYTES = 1024


class Registry:
    """Every name, with the newest version of what it means.

    Any change has a number, greater than all before it: the version of what changed, and of the
    catalog that tells of it. ``catalog`` returns what has changed since it was last called.

    Invariants, checked by ``check``: no version is greater than the registry's, none is twice, and
    only names that are there are pinned.
    """

    def __init__(self) -> None:
        self.version = 0
        self._entries: dict[str, AdapterEntry] = {}
        self._sources: dict[str, list[str]] = {}  # digest -> where it was found, first known first
        self._facts: dict[str, Facts] = {}  # by digest
        self._pinned: set[str] = set()
        self._on_device: set[str] = set()  # of these
        # Name -> the version of its first change since a catalog that told of it, in this order.
        self._changed: dict[str, int] = {}
        self._is_announced = False

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[AdapterEntry]:
        """Every entry, the name known longest first."""
        return iter(self._entries.values())

    @property
    def contents(self) -> int:
        """Digests that the store can tell where to find."""
        return len(self._sources)

    @property
    def refused(self) -> int:
        """Names whose content cannot be used."""
        return sum(entry.refused is not None for entry in self)

    def find(self, name: str) -> AdapterEntry | None:
        """Return what a name means."""
        return self._entries.get(name)

    def put(self, entry: AdapterEntry, facts: Facts | None = None) -> AdapterEntry:
        """Let a name mean something, whatever it meant before; return it with its version.

        ``facts`` are those of its content, if it has one.
        """
        self.version += 1
        entry = msgspec.structs.replace(entry, version=self.version)
        self._entries[entry.name] = entry
        self._changed.setdefault(entry.name, self.version)
        if entry.digest:
            sources = self._sources.setdefault(entry.digest, [])
            if entry.root not in sources:
                sources.append(entry.root)
            assert facts is not None
            self._facts[entry.digest] = facts
        return entry

    def remove(self, name: str) -> AdapterEntry:
        """Let a name mean nothing; return what it meant."""
        self.version += 1
        self._pinned.discard(name)
        self._on_device.discard(name)
        self._changed.setdefault(name, self.version)
        return self._entries.pop(name)

    def names(self, digest: str) -> list[str]:
        """Return every name of a content."""
        return [entry.name for entry in self if entry.digest == digest]

    def sources(self, digest: str) -> list[str]:
        """Return where a content was found."""
        return self._sources.get(digest, [])

    def facts(self, digest: str) -> Facts:
        """Return what was found when a content was read."""
        return self._facts[digest]

    def size_bytes(self, digest: str) -> int:
        """Return what a content takes in host memory, whether it is there or not."""
        return self._facts[digest].size_bytes

    def forget(self, digest: str) -> None:
        """Forget where a content was found; no name may mean it."""
        assert not self.names(digest), f"{digest} has a name"
        self._sources.pop(digest, None)
        self._facts.pop(digest, None)

    def is_pinned(self, name: str) -> bool:
        """Whether a name is to stay in host memory."""
        return name in self._pinned

    def set_pinned(self, name: str, *, pinned: bool, on_device: bool | None = None) -> None:
        """Let a name stay in host memory, or no longer; and on the device, None: as it was."""
        assert name in self._entries
        (self._pinned.add if pinned else self._pinned.discard)(name)
        if on_device and pinned:
            self._on_device.add(name)
        elif on_device is False or not pinned:
            self._on_device.discard(name)

    def is_on_device(self, name: str) -> bool:
        """Whether a name is to stay on the device."""
        return name in self._on_device

    def on_device(self, *, beside: str | None = None) -> dict[str, int]:
        """Return granules of the contents that are to stay on the device, by digest, in order.

        But for what only the name ``beside`` wants there.
        """
        digests = {self._entries[name].digest for name in self._on_device if name != beside}
        return {digest: self._facts[digest].granules for digest in sorted(digests)}

    def pinned_beside(self, name: str) -> set[str]:
        """Return the contents that other names have pinned."""
        return {self._entries[other].digest for other in self._pinned if other != name}

    def is_wanted(self, digest: str) -> bool:
        """Whether some name of a content is pinned."""
        return any(self._entries[name].digest == digest for name in self._pinned)

    def catalog(self) -> Catalog | None:
        """Return what has changed, if anything has; the first time everything, if only nothing.

        What is too much for one message is told in the order of the changes. A catalog's version is
        that of the last change before the first which it does not tell of.
        """
        if self._is_announced and not self._changed:
            return None
        self._is_announced = True
        entries, removed, bytes_left = [], [], CATALOG_BYTES_MAX
        while self._changed and bytes_left > 0:
            name = next(iter(self._changed))
            del self._changed[name]
            entry = self._entries.get(name)
            if entry is None:
                removed.append(name)
                bytes_left -= _ENTRY_BYTES
            else:
                entries.append(entry)
                bytes_left -= _weight(entry)
        version = min(self._changed.values(), default=self.version + 1) - 1
        return Catalog(entries, removed, version, is_last=not self._changed)

    def check(self) -> None:
        """Assert the invariants."""
        versions = [entry.version for entry in self]
        assert len(set(versions)) == len(versions)
        assert max(versions, default=0) <= self.version
        assert self._pinned <= self._entries.keys()
        assert all(entry.digest in self._sources for entry in self if entry.digest)
        assert self._facts.keys() == self._sources.keys()
        assert self._on_device <= self._pinned


def _weight(entry: AdapterEntry) -> int:
    """Return about how many bytes an entry takes in a message."""
    said = entry.defaults
    return _ENTRY_BYTES + (0 if said is None else len(msgspec.msgpack.encode(said)))
