"""The adapter store: names to content at start, weights to host memory on demand."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import assert_never

from weft.actors.adapters import adapter, peft_config, safetensors
from weft.actors.adapters.adapter import Adapter
from weft.actors.adapters.base import BaseShapes
from weft.actors.adapters.cache import HostCache, Resident
from weft.actors.adapters.errors import BadAdapter
from weft.actors.adapters.files import FileError, Files
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

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"

# Of what is said about an adapter. It quotes names from files, and goes into every catalog.
REASON_CHARACTERS_MAX = 1024


class AdapterStore:
    """Owns the catalog, and the normalized files in the run directory.

    A pin (``Acquire``) that finds every place pinned waits for a ``Release``; pins are granted in
    order of arrival.
    """

    def __init__(
        self, config: Config, base: BaseShapes, files: Files, run_dir: str, *, started_s: int
    ) -> None:
        """Read and check every adapter of the configuration; ``started_s`` is unix time.

        Raises ``ConfigError`` if the base cannot be split as the configuration says.
        """
        self._base = base
        self._shards = base.shards(config.tensor_parallel_size)
        self._files = files
        self._folder = Path(run_dir, "adapters")
        self._rank_max = config.max_lora_rank
        self._cache = HostCache(config.max_loaded_loras, config.lora_eviction_policy)
        self._sources: dict[str, list[str]] = {}  # digest -> the folders that held it at start
        self._waiting: deque[str] = deque()  # digests to pin
        self._outbox: deque[Send] = deque()
        entries = [self._entry(name, folder, started_s) for name, folder in config.adapters.items()]
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
        """Load at most one adapter, and send what the links have room for."""
        if self._waiting:
            self._grant()
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
        return not (self._waiting or self._outbox)

    def check(self) -> None:
        """Assert the invariants."""
        self._cache.check()

    def _entry(self, name: str, folder: str, started_s: int) -> AdapterEntry:
        try:
            checked = self._read(folder)
        except (BadAdapter, FileError) as error:
            return AdapterEntry(name, folder, "", 0, started_s, _reason(error))
        self._sources.setdefault(checked.digest, []).append(folder)
        return AdapterEntry(name, folder, checked.digest, checked.rank, started_s)

    def _read(self, folder: str) -> Adapter:
        """Return a folder's adapter. Raises ``BadAdapter`` or ``FileError``."""
        names = self._files.names(folder)
        if CONFIG_NAME not in names:
            raise BadAdapter(f"{CONFIG_NAME}: there is none in {folder}; check the path")
        if WEIGHTS_NAME not in names:
            if PICKLE_NAME in names:
                raise BadAdapter(
                    f"{PICKLE_NAME}: pickled weights can run code and are never read; convert "
                    f"them to {WEIGHTS_NAME}, as PEFT's save_pretrained does"
                )
            raise BadAdapter(f"{WEIGHTS_NAME}: there is none in {folder}; check the path")
        raw = self._files.read(folder, CONFIG_NAME, bytes_max=peft_config.CONFIG_BYTES_MAX)
        try:
            config = peft_config.parse(raw)
        except BadAdapter as error:
            raise BadAdapter(f"{CONFIG_NAME}: {error}") from None
        limit = self._base.adapter_bytes_max(self._rank_max)
        weights = self._files.read(folder, WEIGHTS_NAME, bytes_max=limit)
        try:
            tensors = safetensors.parse(weights)
            return adapter.build(config, tensors, self._base, rank_max=self._rank_max)
        except BadAdapter as error:
            raise BadAdapter(f"{WEIGHTS_NAME}: {error}") from None

    def _grant(self) -> None:
        """Answer the first that waits, unless there is no place for it."""
        digest = self._waiting[0]
        resident = self._cache.pin(digest)
        if resident is None:
            if not self._cache.has_room:
                return
            try:
                self._load(digest)
            except (BadAdapter, FileError) as error:
                self._waiting.popleft()
                self._outbox.append(Send("scheduler", AcquireFailed(digest, _reason(error))))
                return
            resident = self._cache.pin(digest)
            assert resident is not None
        self._waiting.popleft()
        answer = Acquired(*resident)
        self._outbox.append(Send("scheduler", answer))

    def _load(self, digest: str) -> None:
        """Put an adapter into host memory. Raises ``BadAdapter`` or ``FileError``."""
        loaded = self._find(digest)
        for victim in self._cache.victims():
            self._files.remove(victim.path)
        path = str(self._folder / f"{digest}.safetensors")
        parts = loaded.file()
        self._files.write(path, parts)
        size_bytes = sum(len(part) for part in parts)
        granules = loaded.granules(self._base, self._shards)
        self._cache.add(Resident(digest, path, loaded.rank, size_bytes, granules))

    def _find(self, digest: str) -> Adapter:
        """Read an adapter from the first of its folders that still holds it.

        Raises what is wrong with the last folder, ``BadAdapter`` or ``FileError``.
        """
        problem: BadAdapter | FileError = BadAdapter(f"no adapter has the digest {digest[:64]}")
        for folder in self._sources.get(digest, ()):
            try:
                found = self._read(folder)
            except (BadAdapter, FileError) as error:
                problem = error
                continue
            if found.digest == digest:
                return found
            problem = BadAdapter(
                f"{folder} has changed since it was checked; restart to take it over"
            )
        raise problem

    def _counters(self) -> dict[str, float]:
        return {
            "known": len(self._sources),
            "refused": self._refused,
            "loaded": len(self._cache),
            "loaded_bytes": self._cache.size_bytes,
            "pinned": self._cache.pinned,
            "waiting": len(self._waiting),
            "evictions_total": self._cache.evictions,
        }


def _reason(error: BadAdapter | FileError) -> str:
    return str(error)[:REASON_CHARACTERS_MAX]
