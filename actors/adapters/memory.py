"""Adapters in host memory: which are there, and the files that runners read them from."""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path

from weft.actors.adapters.cache import HostCache, Resident
from weft.actors.adapters.files import FileError, Files
from weft.actors.adapters.loader import Content


class HostMemory:
    """A cache of adapters, and a file in the run's directory for each."""

    def __init__(self, cache: HostCache, files: Files, run_dir: str) -> None:
        self.cache = cache
        self._files = files
        self._folder = Path(run_dir, "adapters")

    @property
    def adapter_bytes_max(self) -> int:
        """Of one adapter, and of all that are pinned by name: the rest is left to what comes."""
        return self.cache.bounds.size_bytes // 2

    def too_large(self, size_bytes: int) -> str | None:
        """Say what is wrong with an adapter that there might never be room for."""
        if size_bytes <= self.adapter_bytes_max:
            return None
        return (
            f"it takes {size_bytes} bytes of host memory, and one may take "
            f"{self.adapter_bytes_max}, half of adapter_host_memory_mib; raise it"
        )

    def make_room(self, digest: str, size_bytes: int, wanted: Container[str] = ()) -> bool:
        """Reserve room for an adapter, unless it is there: is there any?

        Those that are ``wanted`` go for it only if nobody else can.
        """
        if self.cache.get(digest) is not None:
            return True
        gone = self.cache.reserve(digest, size_bytes, wanted)
        self._remove(gone or ())
        return gone is not None

    def put(self, content: Content) -> None:
        """Move an adapter's file into the room made for it. Raises ``FileError``.

        If it is there, or is not awaited any more, nothing is done. The file that was read is gone
        afterwards, whatever happens.
        """
        facts, file = content.facts, content.file
        assert file is not None
        if not self.cache.is_awaited(facts.digest):
            self._files.remove(file)
            return
        path = str(self._folder / f"{facts.digest}.safetensors")
        try:
            self._files.move(file, path)
        except FileError:
            self.cache.give_up(facts.digest)
            raise
        self.cache.add(Resident(facts.digest, path, facts.rank, facts.size_bytes, facts.granules))

    def discard(self, content: Content) -> None:
        """Remove the file that was read, if one was asked for."""
        if content.file is not None:
            self._files.remove(content.file)

    def unpin(self, digest: str, holder: str) -> None:
        """Take one of a scheduler's pins away."""
        self._remove(self.cache.unpin(digest, holder))

    def unpin_all(self, holder: str) -> None:
        """Take every pin of a scheduler away: it is gone."""
        self._remove(self.cache.unpin_all(holder))

    def spare(self, digest: str) -> None:
        """Let an adapter go after all others."""
        self._remove(self.cache.spare(digest))

    def let_go(self, digest: str) -> None:
        """Let an adapter be evicted again, or whoever has to go in its stead."""
        self._remove(self.cache.let_go(digest))

    def drop(self, digest: str) -> None:
        """Remove an adapter and its file; nobody may have pinned it."""
        resident = self.cache.drop(digest)
        if resident is not None:
            self._remove([resident])

    def _remove(self, residents: Iterable[Resident]) -> None:
        for resident in residents:
            self._files.remove(resident.path)
