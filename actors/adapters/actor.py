"""The adapter store: which adapters there are, and the weights of those in use, in host memory."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol, assert_never

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

log = logging.getLogger("weft.adapters")


class Shelf(Protocol):
    """Where adapters come from, and the host memory that they are put into."""

    def survey(self) -> list[AdapterEntry]:
        """Check every configured adapter; those that cannot be served say why."""
        ...

    def put(self, digest: str) -> Acquired | AcquireFailed:
        """Write an adapter's weights to host memory, if they are not there, and say where."""
        ...

    def drop(self, digest: str) -> None:
        """Free an adapter's host memory."""
        ...


@dataclass(slots=True)
class Loaded:
    """An adapter in host memory."""

    acquired: Acquired
    pins: int


class AdapterStore:
    """Pins what the scheduler acquires; what is unpinned stays until its room is needed.

    Invariants, checked by ``check``:
      * at most ``max_loaded_loras`` adapters are loaded, unless more are pinned;
      * pins are never negative.
    """

    def __init__(self, config: Config, shelf: Shelf) -> None:
        self._config = config
        self._shelf = shelf
        self._entries: list[AdapterEntry] = []
        self._is_announced = False
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()  # the first to go first

    @property
    def is_idle(self) -> bool:
        """Whether nothing is pinned."""
        return not any(loaded.pins for loaded in self._loaded.values())

    def drain(self) -> None:
        """Nothing to do: only the scheduler sends work."""

    def lost(self, peer: str, now_ns: int) -> list[Send]:
        """No client is a peer."""
        return []

    def receive(self, source: str, message: AdaptersInbox, now_ns: int) -> list[Send]:
        """Take in one message."""
        match message:
            case Acquire(digest):
                return [Send("scheduler", self._acquire(digest))]
            case Release(digest):
                loaded = self._loaded[digest]
                assert loaded.pins > 0, f"{digest} was released more often than acquired"
                loaded.pins -= 1
                return []
            case Inspection(client, label, sections, adapters):
                self.check()
                sections = {**sections, "adapters": self._counters()}
                return [Send("scheduler", Inspection(client, label, sections, adapters))]
            case _:
                assert_never(message)

    def advance(self, turn: Turn) -> list[Send]:
        """Tell the tokenizer, once, which adapters there are."""
        if self._is_announced:
            return []
        self._is_announced = True
        self._entries = self._shelf.survey()
        for entry in self._entries:
            if entry.refused is None:
                log.info("adapter %s: rank %d, %s", entry.name, entry.rank, entry.digest[:12])
            else:
                log.warning("adapter %s is refused: %s", entry.name, entry.refused)
        return [Send("tokenizer", Catalog(self._entries))]

    def check(self) -> None:
        """Assert the invariants."""
        pinned = sum(1 for loaded in self._loaded.values() if loaded.pins)
        assert len(self._loaded) <= max(self._config.max_loaded_loras, pinned)
        assert all(loaded.pins >= 0 for loaded in self._loaded.values())

    def _acquire(self, digest: str) -> Acquired | AcquireFailed:
        loaded = self._loaded.get(digest)
        if loaded is None:
            self._make_room()
            outcome = self._shelf.put(digest)
            if isinstance(outcome, AcquireFailed):
                log.warning("adapter %s cannot be loaded: %s", digest[:12], outcome.reason)
                return outcome
            loaded = self._loaded[digest] = Loaded(outcome, pins=0)
        elif self._config.lora_eviction_policy == "lru":
            self._loaded.move_to_end(digest)
        loaded.pins += 1
        return loaded.acquired

    def _make_room(self) -> None:
        while len(self._loaded) >= self._config.max_loaded_loras:
            unpinned = next((d for d, loaded in self._loaded.items() if not loaded.pins), None)
            if unpinned is None:
                return
            del self._loaded[unpinned]
            self._shelf.drop(unpinned)

    def _counters(self) -> dict[str, float]:
        refused = sum(1 for entry in self._entries if entry.refused is not None)
        return {
            "known": len(self._entries) - refused,
            "refused": refused,
            "loaded": len(self._loaded),
            "pinned": sum(1 for loaded in self._loaded.values() if loaded.pins),
            "loaded_bytes": sum(loaded.acquired.size_bytes for loaded in self._loaded.values()),
        }
