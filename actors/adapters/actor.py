"""The adapter store: names to content at start, weights to host memory on demand."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import NamedTuple, assert_never

from weft.actors.adapters.cache import HostCache, Resident
from weft.actors.adapters.errors import BadAdapter
from weft.actors.adapters.files import FileError, Files
from weft.actors.adapters.loader import Content, Loader
from weft.runtime.actor import Send, Turn
from weft.runtime.config import Config
from weft.runtime.messages import (
    Acquire,
    Acquired,
    AcquireFailed,
    AdapterEntry,
    AdaptersInbox,
    Catalog,
    Inspection,
    Release,
)


class _Load(NamedTuple):
    """An adapter that is being read, from the first of the folders that may hold it."""

    digest: str
    folders: tuple[str, ...]
    problem: str  # with the folder before


class AdapterStore:
    """Owns the catalog, and the normalized files in the run directory.

    A pin (``Acquire``) that finds every place pinned waits for a ``Release``, and so do those that
    come after it. What has to be read holds up nobody but those that ask for it.

    Invariant, checked by ``check``: there is a place for whatever is being read, whoever is pinned.
    """

    def __init__(
        self, config: Config, files: Files, loader: Loader, run_dir: str, *, started_s: int
    ) -> None:
        """Read and check every adapter of the configuration; ``started_s`` is unix time."""
        self._files = files
        self._loader = loader
        self._folder = Path(run_dir, "adapters")
        self._places = config.max_loaded_loras
        self._cache = HostCache(config.max_loaded_loras, config.lora_eviction_policy)
        self._sources: dict[str, list[str]] = {}  # digest -> the folders that held it at start
        self._waiting: deque[str] = deque()  # digests to pin
        self._loading: dict[int, _Load] = {}  # by the loader's ticket
        self._outbox: deque[Send] = deque()
        entries = self._catalog(config.adapters, started_s)
        self._refused = sum(entry.refused is not None for entry in entries)
        self._outbox.append(Send("tokenizer", Catalog(entries)))

    def receive(self, source: str, message: AdaptersInbox, now_ns: int) -> list[Send]:
        """Take in one message; answers leave with the next ``advance``."""
        match message:
            case Acquire(digest):
                self._waiting.append(digest)
            case Release(digest):
                self._cache.unpin(digest)
            case Inspection(client, label, sections, adapters):
                self.check()
                sections = {**sections, "adapters": self._counters()}
                inspection = Inspection(client, label, sections, adapters)
                self._outbox.append(Send("scheduler", inspection))
            case _:
                assert_never(message)
        return []

    def advance(self, turn: Turn) -> list[Send]:
        """Hear what has been read, have more read, and send what the links have room for."""
        # What a loader does at once is heard at once.
        while self._hear() or self._grant():
            pass
        sends = []
        room = {role: turn.room(role) for role in ("tokenizer", "scheduler")}
        for _ in range(len(self._outbox)):
            send = self._outbox.popleft()
            if room[send.to] > 0:
                room[send.to] -= 1
                sends.append(send)
            else:
                self._outbox.append(send)
        return sends

    def lost(self, peer: str, now_ns: int) -> list[Send]:
        """Take back the pins of a scheduler that is gone, and the answers meant for it."""
        if peer == "scheduler":
            self._waiting.clear()
            self._cache.unpin_all()
            # An answer yet unsent would tell the next scheduler of a pin that it does not have.
            self._outbox = deque(
                send
                for send in self._outbox
                if not isinstance(send.message, Acquired | AcquireFailed)
            )
        return []

    def drain(self) -> None:
        """Do nothing: requests that are still running may need their adapters."""

    @property
    def is_idle(self) -> bool:
        """Whether no answer is due."""
        return not (self._waiting or self._loading or self._outbox)

    def check(self) -> None:
        """Assert the invariants."""
        self._cache.check()
        digests = [load.digest for load in self._loading.values()]
        assert len(set(digests)) == len(digests), f"one is read twice: {digests}"
        assert self._cache.pinned + len(digests) <= self._places

    def _catalog(self, adapters: dict[str, str], started_s: int) -> list[AdapterEntry]:
        """Read every adapter once, and wait for it."""
        names = {
            self._loader.start(folder, with_file=False): name for name, folder in adapters.items()
        }
        found: dict[str, Content | BadAdapter] = {}
        while len(found) < len(adapters):
            self._loader.wait()
            found |= {names[ticket]: result for ticket, result in self._loader.finished()}
        entries = []
        for name, folder in adapters.items():
            result = found[name]
            if isinstance(result, BadAdapter):
                entries.append(AdapterEntry(name, folder, "", 0, started_s, str(result)))
            else:
                facts = result.facts
                self._sources.setdefault(facts.digest, []).append(folder)
                entries.append(AdapterEntry(name, folder, facts.digest, facts.rank, started_s))
        return entries

    def _grant(self) -> bool:
        """Pin what is there and begin to read what is not, in order, up to one without a place.

        Return whether anything was begun.
        """
        digests, self._waiting = self._waiting, deque()
        loading = {load.digest for load in self._loading.values()}
        has_begun = False
        while digests:
            digest = digests.popleft()
            if digest in loading:
                self._waiting.append(digest)
                continue
            is_free = self._cache.pinned + len(self._loading) < self._places
            if not (is_free or self._cache.is_pinned(digest)):
                digests.appendleft(digest)
                break
            resident = self._cache.pin(digest)
            if resident is not None:
                self._outbox.append(Send("scheduler", Acquired(*resident)))
                continue
            loading.add(digest)
            self._waiting.append(digest)
            unknown = f"no adapter has the digest {digest[:64]}"
            self._begin(_Load(digest, tuple(self._sources.get(digest, ())), unknown))
            has_begun = True
        self._waiting.extend(digests)
        return has_begun

    def _begin(self, load: _Load) -> None:
        """Read an adapter from the next of its folders, or say what was wrong with the last."""
        if load.folders:
            self._loading[self._loader.start(load.folders[0], with_file=True)] = load
            return
        waiting = len(self._waiting)
        self._waiting = deque(digest for digest in self._waiting if digest != load.digest)
        failed = AcquireFailed(load.digest, load.problem)
        self._outbox.extend([Send("scheduler", failed)] * (waiting - len(self._waiting)))

    def _hear(self) -> bool:
        """Take in what has been read; return whether anything was."""
        finished = self._loader.finished()
        for ticket, result in finished:
            load = self._loading.pop(ticket)
            problem = self._put(load, result)
            if problem is not None:
                self._begin(load._replace(folders=load.folders[1:], problem=problem))
        return bool(finished)

    def _put(self, load: _Load, result: Content | BadAdapter) -> str | None:
        """Put what has been read into host memory; return what is wrong with it, if so."""
        if isinstance(result, BadAdapter):
            return str(result)
        assert result.file is not None
        facts = result.facts
        if facts.digest != load.digest:
            self._files.remove(result.file)
            return f"{load.folders[0]} has changed since it was checked; restart to take it over"
        for victim in self._cache.victims():
            self._files.remove(victim.path)
        path = str(self._folder / f"{facts.digest}.safetensors")
        try:
            self._files.move(result.file, path)
        except FileError as error:
            return str(error)
        self._cache.add(Resident(facts.digest, path, facts.rank, facts.size_bytes, facts.granules))
        return None

    def _counters(self) -> dict[str, float]:
        return {
            "known": len(self._sources),
            "refused": self._refused,
            "loaded": len(self._cache),
            "loaded_bytes": self._cache.size_bytes,
            "pinned": self._cache.pinned,
            "waiting": len(self._waiting),
            "loading": len(self._loading),
            "evictions_total": self._cache.evictions,
        }
