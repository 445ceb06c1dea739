"""Adapters in host memory: which are there, and the files that runners read them from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from weft.actors.adapters.adapter import Adapter
from weft.actors.adapters.base import BaseShapes
from weft.actors.adapters.cache import HostCache, Resident
from weft.actors.adapters.files import Files
from weft.actors.shards import Shard


class HostMemory:
    """A cache of adapters, and a file in the run's directory for each."""

    def __init__(
        self,
        cache: HostCache,
        files: Files,
        run_dir: str,
        base: BaseShapes,
        shards: Sequence[Shard],
    ) -> None:
        self.cache = cache
        self._files = files
        self._folder = Path(run_dir, "adapters")
        self._base = base
        self._shards = shards

    def has_room_for(self, digest: str) -> bool:
        """Whether ``put`` has a place for an adapter."""
        return self.cache.is_kept(digest) or self.cache.has_room

    def put(self, adapter: Adapter) -> Resident:
        """Write an adapter's file, unless it is there. Raises ``FileError``; there must be room."""
        resident = self.cache.get(adapter.digest)
        if resident is not None:
            return resident
        if not self.cache.is_kept(adapter.digest):
            self._remove(self.cache.victims())
        path = str(self._folder / f"{adapter.digest}.safetensors")
        parts = adapter.file()
        self._files.write(path, parts)
        size_bytes = sum(len(part) for part in parts)
        granules = adapter.granules(self._base, self._shards)
        resident = Resident(adapter.digest, path, adapter.rank, size_bytes, granules)
        self.cache.add(resident)
        return resident

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
