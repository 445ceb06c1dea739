"""Adapters in host memory: which are there, and the files that runners read them from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from weft.actors.adapters.cache import HostCache, Resident
from weft.actors.adapters.files import Files
from weft.actors.adapters.loader import Content


class HostMemory:
    """A cache of adapters, and a file in the run's directory for each."""

    def __init__(self, cache: HostCache, files: Files, run_dir: str) -> None:
        self.cache = cache
        self._files = files
        self._folder = Path(run_dir, "adapters")

    def has_room_for(self, digest: str) -> bool:
        """Whether ``put`` has a place for an adapter."""
        is_placed = self.cache.get(digest) is not None or self.cache.is_kept(digest)
        return is_placed or self.cache.has_room

    def put(self, content: Content) -> None:
        """Move an adapter's file into place, unless it is there. Raises ``FileError``.

        There must be room. The file that was read is gone afterwards, whatever happens.
        """
        facts, file = content.facts, content.file
        assert file is not None
        if self.cache.get(facts.digest) is not None:
            self._files.remove(file)
            return
        if not self.cache.is_kept(facts.digest):
            self._remove(self.cache.victims())
        path = str(self._folder / f"{facts.digest}.safetensors")
        self._files.move(file, path)
        self.cache.add(Resident(facts.digest, path, facts.rank, facts.size_bytes, facts.granules))

    def discard(self, content: Content) -> None:
        """Remove the file that was read, if one was asked for."""
        if content.file is not None:
            self._files.remove(content.file)

    def keep_no_longer(self, digest: str) -> None:
        """Let an adapter be evicted again, or whoever has to go in its stead."""
        self._remove(self.cache.keep_no_longer(digest))

    def drop(self, digest: str) -> None:
        """Remove an adapter and its file; nobody may have pinned it."""
        resident = self.cache.drop(digest)
        if resident is not None:
            self._remove([resident])

    def _remove(self, residents: Iterable[Resident]) -> None:
        for resident in residents:
            self._files.remove(resident.path)
