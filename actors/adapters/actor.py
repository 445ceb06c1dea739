"""The adapter store: what each name means, and its content in host memory when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import msgspec

from weft.actors.adapters.arrivals import Arrivals
from weft.actors.adapters.asked import Asked, CannotDo, check_name, no_adapter, unknown
from weft.actors.adapters.cache import Bounds, HostCache, Resident
from weft.actors.adapters.device_pins import DevicePins
from weft.actors.adapters.errors import BadAdapter
from weft.actors.adapters.fetch import Fetcher, Want
from weft.actors.adapters.files import Files
from weft.actors.adapters.folder import WatchedFolder
from weft.actors.adapters.lines import Lines, Reading
from weft.actors.adapters.loader import Content, Loaded, Loader
from weft.actors.adapters.memory import HostMemory
from weft.actors.adapters.naming import Naming
from weft.actors.adapters.outbox import Outbox
from weft.actors.adapters.registry import Registry
from weft.actors.adapters.roots import Roots
from weft.actors.adapters.unseen import Unseen
from weft.runtime import sources
from weft.runtime.actor import Send, Turn
from weft.runtime.config import Config
from weft.runtime.messages import (
    Acquire,
    Acquired,
    AcquireFailed,
    AdapterAnswer,
    AdapterEntry,
    AdapterReply,
    AdapterRequest,
    AdaptersInbox,
    CatalogSeen,
    DeviceRoom,
    Discover,
    Inspection,
    ListAdapters,
    LoadAdapter,
    LoadMetrics,
    PinAdapter,
    PrefetchAdapter,
    Release,
    Retired,
    UnloadAdapter,
)
from weft.runtime.replicas import ALONE

# Operations that wait for something, and names that may be known; more are refused.
OPERATIONS_MAX = 1024
NAMES_MAX = 65536

QUEUE_FULL_RETRY_S = 1.0


class AdapterStore:
    """Owns the names of adapters, and the files in the run directory.

    No answer leaves before the tokenizer has seen the catalog that makes it true.

    Invariants, checked by ``check``: those of the parts.
    """

    def __init__(
        self,
        config: Config,
        files: Files,
        loader: Loader,
        run_dir: str,
        *,
        started_s: int,
        schedulers: Sequence[str] = (ALONE.scheduler,),
    ) -> None:
        """Read every adapter of the configuration; ``started_s`` is unix time."""
        bounds = Bounds(config.host_memory_bytes, config.max_cpu_loras)
        cache = HostCache(bounds, config.lora_eviction_policy)
        self._schedulers = tuple(schedulers)
        self._base_name = config.base_name
        self._registry = Registry()
        self._roots = Roots(config)
        self._loader = loader
        self._memory = HostMemory(cache, files, run_dir)
        self._fetcher = Fetcher(self._registry, self._memory, loader)
        self._device_pins = DevicePins()
        self._naming = Naming(self._registry, self._memory, self._device_pins, schedulers)
        self._folder = WatchedFolder(config.adapters_folder, files)
        self._started_s = started_s
        self._started_ns: int | None = None
        self._now_ns = 0
        self._lines = Lines(loader)
        self._unseen = Unseen()
        self._arrivals = Arrivals(self._registry, self._memory, self._naming, self._unseen)
        self._seen = 0  # the catalog by which the tokenizer resolves names
        self._outbox = Outbox()
        self._unloads = 0
        named = {name: sources.split_digest(text) for name, text in config.adapters.items()}
        for name, (source, digest) in named.items():
            if not sources.is_remote(source):
                self._read(name, source, digest=digest)
        finished: list[Loaded] = []
        while len(finished) < len(self._lines):
            loader.wait()
            finished += loader.finished()
        # In the order of the configuration, whichever was read first.
        self._hear(sorted(finished, key=lambda loaded: loaded.ticket))
        # No network holds up the start: whoever asks for these before they have come waits.
        for name, (source, digest) in named.items():
            if sources.is_remote(source):
                self._know(name, source)
                self._read(name, source, digest=digest)

    def receive(self, source: str, message: AdaptersInbox, now_ns: int) -> list[Send]:
        """Take in one message; answers leave with the next ``advance``."""
        self._now_ns = now_ns
        match message:
            case Acquire(digest):
                self._fetcher.want(Want(digest, source))
                retire = self._naming.leaving.used(source, digest)
                self._outbox.add([Send(source, retire)] if retire else [])
            case Release(digest):
                self._memory.unpin(digest, source)
            case DeviceRoom():
                self._device_pins.hear(source, message)
            case AdapterRequest(client, operation):
                self._take(Asked(client, operation))
            case Discover(name):
                self._discover(name)
            case CatalogSeen(version):
                self._settle(version)
            case Retired(digest, version):
                for asked in self._naming.retired(source, digest, version):
                    self._answer(asked, "unloaded", [])
            case Inspection():
                self._reply(self._inspect(message))
            case _:
                assert_never(message)
        return []

    def advance(self, turn: Turn) -> list[Send]:
        """Take in what was read, answer whom it is for, and send what the links have room for."""
        self._now_ns = turn.now_ns
        if self._started_ns is None:
            self._started_ns = turn.now_ns
        if self._folder.is_due(turn.now_ns):
            self._scan()
        self._try_again()
        # What a loader does at once is heard at once.
        self._take_loaded()
        while self._grant() or self._take_loaded():
            pass
        self._memory.shrink()
        self._outbox.add(self._device_pins.due(list(self._registry.on_device())))
        room = {role: turn.room(role) for role in ("tokenizer", *self._schedulers)}
        sends = []
        if room["tokenizer"] > 0:
            catalog = self._registry.catalog()
            if catalog is not None:
                room["tokenizer"] -= 1
                sends.append(Send("tokenizer", catalog))
        return sends + self._outbox.flush(room)

    def lost(self, peer: str, now_ns: int) -> list[Send]:
        """Take back the pins of a scheduler that is gone, and the answers meant for it."""
        if peer in self._schedulers:
            self._fetcher.forget_scheduler(peer)
            self._memory.unpin_all(peer)
            self._device_pins.forget(peer)
            self._naming.leaving.unsent()
            self._outbox.lose(peer)
        return []

    def drain(self) -> None:
        """Do nothing: requests that are still running may need their adapters."""

    @property
    def is_idle(self) -> bool:
        """Whether no answer is due."""
        return self._fetcher.is_idle and self._outbox.is_empty

    def check(self) -> None:
        """Assert the invariants."""
        self._memory.cache.check()
        self._registry.check()
        self._fetcher.check()
        self._lines.check()
        self._naming.check()

    # ---- operations -----------------------------------------------------------------------------

    def _take(self, asked: Asked) -> None:
        waiting = self._lines.waiting + len(self._unseen) + len(self._fetcher)
        operation = asked.operation
        if waiting >= OPERATIONS_MAX:
            text = f"{waiting} operations wait already; try again later"
            self._refuse(asked, CannotDo("queue_full", text, None, QUEUE_FULL_RETRY_S))
        elif isinstance(operation, ListAdapters) or operation.name not in self._lines:
            self._begin(asked)
        elif isinstance(operation, UnloadAdapter) and self._give_up(operation.name):
            self._answer(asked, "unloaded", [])
        else:
            self._lines.wait(operation.name, asked)

    def _begin(self, asked: Asked) -> None:
        try:
            self._do(asked)
        except CannotDo as refusal:
            self._refuse(asked, refusal)

    def _do(self, asked: Asked) -> None:
        """Do it, or begin to. Raises ``CannotDo``."""
        match asked.operation:
            case LoadAdapter(_, name):
                check_name(name, self._base_name)
                if self._registry.find(name) is None and len(self._registry) >= NAMES_MAX:
                    text = f"{NAMES_MAX} adapters are known already; unload some"
                    raise CannotDo("invalid_value", text, "name")
                given = asked.operation.source, asked.operation.digest
                try:
                    source, digest = self._roots.resolve(*given)
                except BadAdapter as error:
                    raise CannotDo("invalid_value", f"source: {error}", "source") from None
                self._read(name, source, asked, digest=digest)
            case UnloadAdapter(_, name):
                self._unload(name, asked)
            case PinAdapter() | PrefetchAdapter():
                self._pin_or_prefetch(asked)
            case ListAdapters():
                one = asked.operation.name
                entries = list(self._registry) if one is None else [self._known(one)]
                self._answer(asked, "listed", entries)
            case _:
                assert_never(asked.operation)

    def _known(self, name: str) -> AdapterEntry:
        entry = self._registry.find(name)
        if entry is None:
            raise no_adapter(name) if name == self._base_name else unknown(name)
        return entry

    def _unload(self, name: str, asked: Asked) -> None:
        entry = self._known(name)
        self._unloads += 1
        self._folder.ignore(name)
        if self._naming.remove(name):
            self._naming.leaving.wait(entry.digest, asked)
        else:
            self._unseen.wait(self._registry.version, asked, "unloaded")

    def _pin_or_prefetch(self, asked: Asked) -> None:
        operation = asked.operation
        assert isinstance(operation, PinAdapter | PrefetchAdapter)
        entry = self._known(operation.name)
        if isinstance(operation, PinAdapter) and not operation.pinned:
            self._naming.set_pinned(entry.name, pinned=False)
            self._answer(asked, "unpinned", [entry])
        elif entry.is_unread:
            self._read(entry.name, entry.root)
            self._lines.wait(entry.name, asked)
        elif entry.refused is not None:
            text = f"the adapter {entry.name!r} cannot be used: {entry.refused}"
            raise CannotDo("bad_adapter", text, "name")
        else:
            if isinstance(operation, PinAdapter):
                facts, on_device = self._registry.facts(entry.digest), operation.on_device
                self._naming.check_pin(entry.name, facts, on_device=on_device)
                self._naming.set_pinned(entry.name, pinned=True, on_device=on_device)
            self._fetcher.want(Want(entry.digest, asked))

    # ---- names ----------------------------------------------------------------------------------

    def _read(
        self, name: str, source: str, asked: Asked | None = None, *, digest: str | None = None
    ) -> None:
        self._lines.read(name, source, self._now_ns, asked, digest=digest)

    def _take_loaded(self) -> bool:
        """Take in what has been read; return whether there was anything."""
        finished = self._loader.finished()
        self._hear(finished)
        return bool(finished)

    def _hear(self, finished: list[Loaded]) -> None:
        for loaded in finished:
            found = self._lines.finish(loaded, self._now_ns)
            if found is None:
                self._fetcher.take(loaded, self._now_ns)
                continue
            reading, line = found
            if isinstance(loaded.result, Content) and loaded.result.file is not None:
                self._fetcher.reads.add(self._now_ns - reading.started_ns)
            if reading.asked is None:
                self._arrivals.know(
                    reading, loaded.result, now_ns=self._now_ns, created_s=self._created_s
                )
            else:
                self._load(reading, reading.asked, loaded.result)
            while line:
                self._take(line.popleft())

    def _try_again(self) -> None:
        """Read what could not be had, unless its name has come to mean something else."""
        for name, source, digest in self._arrivals.again.due(self._now_ns):
            entry = self._registry.find(name)
            is_wanted = entry is not None and entry.refused is not None and entry.root == source
            if is_wanted and name not in self._lines:
                self._read(name, source, digest=digest)
            else:
                self._arrivals.again.forget(name)

    def _give_up(self, name: str) -> bool:
        """End what is being read for a name that is unloaded, if that can be.

        Return whether the name means nothing then.
        """
        return self._lines.cancel(name) and self._registry.find(name) is None

    def _load(self, reading: Reading, asked: Asked, result: Content | BadAdapter) -> None:
        assert isinstance(asked.operation, LoadAdapter)
        try:
            outcome = self._arrivals.load(
                reading, asked.operation, result, created_s=self._created_s
            )
        except CannotDo as refusal:
            self._refuse(asked, refusal)
        else:
            self._unseen.wait(self._registry.version, asked, outcome)
            self._settle(self._seen)  # it may have been seen already

    def _know(self, name: str, root: str, *, refused: str | None = None) -> None:
        """Let a name be known that has no content (yet)."""
        self._naming.know(name, root, created_s=self._created_s, refused=refused)

    @property
    def _created_s(self) -> int:
        """Unix time, as names have it that become known now."""
        started_ns = self._now_ns if self._started_ns is None else self._started_ns
        return self._started_s + (self._now_ns - started_ns) // 1_000_000_000

    def _settle(self, version: int) -> None:
        """The tokenizer resolves names by this catalog: answer, and retire what has no name."""
        for asked, outcome in self._unseen.seen(version):
            entry = self._registry.find(asked.operation.name or "")
            is_gone = outcome == "unloaded" or entry is None
            self._answer(asked, outcome, [] if is_gone or entry is None else [entry])
        self._seen = version
        for retire in self._naming.leaving.seen(version):
            self._outbox.add(Send(scheduler, retire) for scheduler in self._schedulers)

    # ---- the watched folder ---------------------------------------------------------------------

    def _scan(self) -> None:
        """Know the names of new sub-folders, and forget those that are gone."""
        for name, path in self._folder.scan(self._now_ns):
            entry = self._registry.find(name)
            if name in self._lines:
                continue
            if path is None:
                if entry is not None and entry.root == self._folder.path(name):
                    self._naming.remove(name)
            elif entry is None and name != self._base_name and len(self._registry) < NAMES_MAX:
                self._know(name, path)
            elif entry is not None and entry.refused is not None and entry.root == path:
                # It may have been half copied: whoever asks next has it read again.
                self._know(name, path)

    def _discover(self, name: str) -> None:
        entry = self._registry.find(name)
        if entry is not None and entry.is_unread and name not in self._lines:
            self._read(name, entry.root)

    # ---- host memory ----------------------------------------------------------------------------

    def _grant(self) -> bool:
        """Answer whom there is an answer for; return whether there was anybody."""
        granted = self._fetcher.grant(self._now_ns)
        for want, result in granted:
            self._granted(want, result)
        return bool(granted)

    def _granted(self, want: Want, result: Resident | CannotDo) -> None:
        digest, asked, _ = want
        if isinstance(asked, str):
            answer = (
                AcquireFailed(digest, str(result))
                if isinstance(result, CannotDo)
                else Acquired(*result, want.is_missed)
            )
            self._outbox.add([Send(asked, answer)])
            return
        entry = self._registry.find(asked.operation.name or "")
        if entry is None or entry.digest != digest:
            result = unknown(asked.operation.name or "")
        if isinstance(result, CannotDo):
            self._unpin_after(asked, entry)
            self._refuse(asked, result)
        elif entry is not None:
            is_pin = isinstance(asked.operation, PinAdapter)
            self._answer(asked, "pinned" if is_pin else "prefetched", [entry])

    def _unpin_after(self, asked: Asked, entry: AdapterEntry | None) -> None:
        """Take back the pin of an adapter that could not be read."""
        if isinstance(asked.operation, PinAdapter) and entry is not None:
            self._naming.set_pinned(entry.name, pinned=False)

    # ---- answers --------------------------------------------------------------------------------

    def _refuse(self, asked: Asked, refusal: CannotDo) -> None:
        self._reply(asked.refuse(refusal))

    def _answer(self, asked: Asked, outcome: str, entries: list[AdapterEntry]) -> None:
        states = [self._naming.describe(entry) for entry in entries]
        answer = AdapterAnswer(asked.operation.label, outcome, states)
        self._reply(AdapterReply(asked.client, answer))

    def _reply(self, message: AdapterReply | Inspection) -> None:
        """Send what goes on to clients: schedulers add what they know."""
        self._outbox.add([Send(self._schedulers[0], message)])

    def _inspect(self, inspection: Inspection) -> Inspection:
        self.check()
        reads = self._fetcher.reads
        told = LoadMetrics("adapters", "host", list(reads.counts), reads.sum_s)
        return msgspec.structs.replace(
            inspection,
            sections={**inspection.sections, "adapters": self._counters()},
            loads=[*inspection.loads, told],
        )

    def _counters(self) -> dict[str, float]:
        cache = self._memory.cache
        return {
            "names": len(self._registry),
            "known": self._registry.contents,
            "refused": self._registry.refused,
            "loaded": len(cache),
            "loaded_bytes": cache.size_bytes,
            "loading_bytes": cache.reserved_bytes,
            "bytes_max": cache.bounds.size_bytes,
            "pinned": cache.pinned,
            "kept": cache.kept,
            "leaving": len(self._naming.leaving),
            "waiting": len(self._fetcher),
            "loading": self._fetcher.loading,
            "evictions_total": cache.evictions,
            "hits_total": self._fetcher.hits,
            "misses_total": self._fetcher.misses,
            **self._lines.counters(),
            "loads_total": self._arrivals.loads,
            "unloads_total": self._unloads,
            **self._loader.counters(),
        }
