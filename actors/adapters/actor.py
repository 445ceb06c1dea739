"""The adapter store: what each name means, and its content in host memory when it is needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, assert_never

import msgspec

from weft.actors.adapters.again import Again
from weft.actors.adapters.asked import Asked, CannotDo, check_name, full, unknown
from weft.actors.adapters.cache import Bounds, HostCache, Resident
from weft.actors.adapters.device_pins import DevicePins
from weft.actors.adapters.errors import BadAdapter, GivenUp, Unavailable
from weft.actors.adapters.fetch import Fetcher, Want
from weft.actors.adapters.files import FileError, Files
from weft.actors.adapters.folder import WatchedFolder
from weft.actors.adapters.leaving import Leaving
from weft.actors.adapters.loader import Content, Facts, Loaded, Loader
from weft.actors.adapters.memory import HostMemory
from weft.actors.adapters.registry import Registry
from weft.actors.adapters.roots import Roots
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
    AdapterState,
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
UNAVAILABLE_RETRY_S = 10.0


class _Reading(NamedTuple):
    """A name whose source is being read: for a client, or because it is to be known (None)."""

    name: str
    source: str
    asked: Asked | None
    started_ns: int
    digest: str | None  # that its content must have, if one was told


class _Unseen(NamedTuple):
    """An answer that waits until the tokenizer resolves names accordingly."""

    version: int
    asked: Asked
    outcome: str


class AdapterStore:
    """Owns the names of adapters, and the files in the run directory.

    Names that are being read have a line of operations that wait for it, so that what is done with
    one name is done in the order in which it was asked for. No answer leaves before the tokenizer
    has seen the catalog that makes it true. See ``Leaving`` for what becomes of content whose last
    name is gone.

    Invariants, checked by ``check``: those of the parts; what leaves has no name; a content that is
    pinned by name or leaving is kept in host memory if it is there and may be.
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
        self._leaving = Leaving(schedulers)
        self._folder = WatchedFolder(config.adapters_folder, files)
        self._started_s = started_s
        self._started_ns: int | None = None
        self._now_ns = 0
        self._reading: dict[int, _Reading] = {}  # by ticket
        self._lines: dict[str, deque[Asked]] = {}  # by name that is being read
        self._again = Again()
        self._unseen: deque[_Unseen] = deque()
        self._seen = 0  # the catalog by which the tokenizer resolves names
        self._outbox: deque[Send] = deque()
        self._counts = dict.fromkeys(("reads", "read_failures", "read_us", "loads", "unloads"), 0)
        named = {name: sources.split_digest(text) for name, text in config.adapters.items()}
        for name, (source, digest) in named.items():
            if not sources.is_remote(source):
                self._read(name, source, digest=digest)
        finished: list[Loaded] = []
        while len(finished) < len(self._reading):
            loader.wait()
            finished += loader.finished()
        # In the order of the configuration, whichever was read first.
        self._hear(sorted(finished, key=lambda loaded: loaded.ticket))
        # No network holds up the start: whoever asks for these before they have come waits.
        for name, (source, digest) in named.items():
            if sources.is_remote(source):
                self._registry.put(self._entry(name, source, None, None))
                self._read(name, source, digest=digest)

    def receive(self, source: str, message: AdaptersInbox, now_ns: int) -> list[Send]:
        """Take in one message; answers leave with the next ``advance``."""
        self._now_ns = now_ns
        match message:
            case Acquire(digest):
                self._fetcher.want(Want(digest, source))
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
                self._forget(source, digest, version)
            case Inspection():
                self._outbox.append(Send(self._schedulers[0], self._inspect(message)))
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
        self._outbox += self._device_pins.due(list(self._registry.on_device()))
        room = {role: turn.room(role) for role in ("tokenizer", *self._schedulers)}
        sends = []
        if room["tokenizer"] > 0:
            catalog = self._registry.catalog()
            if catalog is not None:
                room["tokenizer"] -= 1
                sends.append(Send("tokenizer", catalog))
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
        if peer in self._schedulers:
            self._fetcher.forget_scheduler(peer)
            self._memory.unpin_all(peer)
            self._device_pins.forget(peer)
            self._leaving.unsent()
            # An answer yet unsent would tell the next scheduler of a pin that it does not have.
            self._outbox = deque(
                send
                for send in self._outbox
                if send.to != peer or not isinstance(send.message, Acquired | AcquireFailed)
            )
        return []

    def drain(self) -> None:
        """Do nothing: requests that are still running may need their adapters."""

    @property
    def is_idle(self) -> bool:
        """Whether no answer is due."""
        return self._fetcher.is_idle and not self._outbox

    def check(self) -> None:
        """Assert the invariants."""
        cache = self._memory.cache
        cache.check()
        self._registry.check()
        self._fetcher.check()
        names = [reading.name for reading in self._reading.values()]
        assert sorted(names) == sorted(self._lines), (names, self._lines)
        for entry in self._registry:
            assert entry.digest not in self._leaving, f"{entry.name} leaves and has a name"
            if self._registry.is_pinned(entry.name):
                assert cache.is_kept(entry.digest)

    # ---- operations -----------------------------------------------------------------------------

    def _take(self, asked: Asked) -> None:
        waiting = sum(map(len, self._lines.values())) + len(self._unseen) + len(self._fetcher)
        name = asked.operation.name
        if waiting >= OPERATIONS_MAX:
            text = f"{waiting} operations wait already; try again later"
            self._refuse(asked, CannotDo("queue_full", text, None, QUEUE_FULL_RETRY_S))
        elif name in self._lines and not isinstance(asked.operation, ListAdapters):
            if isinstance(asked.operation, UnloadAdapter) and self._give_up(name):
                self._answer(asked, "unloaded", [])
            else:
                self._lines[name].append(asked)
        else:
            self._begin(asked)

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
            raise unknown(name)
        return entry

    def _unload(self, name: str, asked: Asked) -> None:
        entry = self._known(name)
        self._counts["unloads"] += 1
        self._folder.ignore(name)
        self._registry.remove(name)
        if self._leave(entry.digest):
            self._leaving.wait(entry.digest, asked)
        else:
            self._unseen.append(_Unseen(self._registry.version, asked, "unloaded"))

    def _pin_or_prefetch(self, asked: Asked) -> None:
        operation = asked.operation
        assert isinstance(operation, PinAdapter | PrefetchAdapter)
        entry = self._known(operation.name)
        if isinstance(operation, PinAdapter) and not operation.pinned:
            self._registry.set_pinned(entry.name, pinned=False)
            self._keep_or_not(entry.digest)
            self._answer(asked, "unpinned", [entry])
        elif entry.is_unread:
            self._read(entry.name, entry.root)
            self._lines[entry.name].append(asked)
        elif entry.refused is not None:
            text = f"the adapter {entry.name!r} cannot be used: {entry.refused}"
            raise CannotDo("bad_adapter", text, "name")
        else:
            if isinstance(operation, PinAdapter):
                facts, on_device = self._registry.facts(entry.digest), operation.on_device
                self._check_pin(entry.name, facts, on_device=on_device)
                self._registry.set_pinned(entry.name, pinned=True, on_device=on_device)
                self._memory.cache.keep(entry.digest)
            self._fetcher.want(Want(entry.digest, asked))

    def _check_pin(self, name: str, facts: Facts, *, on_device: bool) -> None:
        """Raise ``CannotDo`` unless a name may stay in host memory, and on the device."""
        digest, size_bytes = facts.digest, facts.size_bytes
        if on_device:
            others_there = self._registry.on_device(beside=name)
            self._device_pins.check(others_there | {digest: facts.granules})
        others = self._registry.pinned_beside(name) - {digest}
        taken = sum(map(self._registry.size_bytes, others))
        if taken + size_bytes > self._memory.adapter_bytes_max:
            text = (
                f"pinned: the adapter takes {size_bytes} bytes, {taken} are pinned already, and "
                f"{self._memory.adapter_bytes_max} may be, half of adapter_host_memory_mib; unpin "
                f"another one, or raise it"
            )
            raise CannotDo("invalid_value", text, "pinned")

    # ---- names ----------------------------------------------------------------------------------

    def _read(
        self, name: str, source: str, asked: Asked | None = None, *, digest: str | None = None
    ) -> None:
        assert name not in self._lines
        self._lines[name] = deque()
        ticket = self._loader.start(source, with_file=asked is not None)
        self._reading[ticket] = _Reading(name, source, asked, self._now_ns, digest)

    def _take_loaded(self) -> bool:
        """Take in what has been read; return whether there was anything."""
        finished = self._loader.finished()
        self._hear(finished)
        return bool(finished)

    def _hear(self, finished: list[Loaded]) -> None:
        for loaded in finished:
            reading = self._reading.pop(loaded.ticket, None)
            if reading is None:
                self._fetcher.take(loaded, self._now_ns)
                continue
            self._count(reading, loaded)
            line = self._lines.pop(reading.name)
            result = self._expected(reading, loaded.result)
            if reading.asked is None:
                self._name(reading, result)
            else:
                self._finish_load(reading, reading.asked, result)
            while line:
                self._take(line.popleft())

    def _count(self, reading: _Reading, loaded: Loaded) -> None:
        self._counts["reads"] += 1
        self._counts["read_us"] += (self._now_ns - reading.started_ns) // 1000
        self._counts["read_failures"] += isinstance(loaded.result, BadAdapter)
        if isinstance(loaded.result, Content) and loaded.result.file is not None:
            self._fetcher.reads.add(self._now_ns - reading.started_ns)

    def _expected(self, reading: _Reading, result: Content | BadAdapter) -> Content | BadAdapter:
        """Refuse content with another digest than the one that was told with its source."""
        expected = reading.digest
        if expected is None or isinstance(result, BadAdapter) or result.digest == expected:
            return result
        self._memory.discard(result)
        return BadAdapter(
            f"the content of {reading.source} has the digest {result.digest}, not {expected} as "
            f"was asked for; is it what you want? then give its digest, or none"
        )

    def _name(self, reading: _Reading, result: Content | BadAdapter) -> None:
        """Let a name of the configuration, or of the watched folder, mean what was read."""
        entry = self._registry.find(reading.name)
        if entry is not None and entry.digest:
            return
        if isinstance(result, Unavailable):
            self._again.failed(reading.name, reading.source, reading.digest, self._now_ns)
        if isinstance(result, BadAdapter):
            self._registry.put(self._entry(reading.name, reading.source, None, str(result)))
        elif problem := self._too_large(result):
            self._registry.put(self._entry(reading.name, reading.source, None, problem))
        else:
            self._register(reading, result)

    def _try_again(self) -> None:
        """Read what could not be had, unless its name has come to mean something else."""
        for name, source, digest in self._again.due(self._now_ns):
            entry = self._registry.find(name)
            is_wanted = entry is not None and entry.refused is not None and entry.root == source
            if is_wanted and name not in self._lines:
                self._read(name, source, digest=digest)
            else:
                self._again.forget(name)

    def _give_up(self, name: str) -> bool:
        """End what is being read for a name that is unloaded, if that can be.

        Return whether the name means nothing then.
        """
        [ticket] = [ticket for ticket, reading in self._reading.items() if reading.name == name]
        is_over = self._loader.cancel(ticket)
        return is_over and self._registry.find(name) is None and not self._lines[name]

    def _too_large(self, adapter: Content) -> str | None:
        """Say what is wrong with an adapter that host memory might never have room for."""
        size_bytes, most = adapter.facts.size_bytes, self._memory.adapter_bytes_max
        if size_bytes <= most:
            return None
        return (
            f"it takes {size_bytes} bytes of host memory, and one may take {most}, half of "
            f"adapter_host_memory_mib; raise it"
        )

    def _finish_load(self, reading: _Reading, asked: Asked, result: Content | BadAdapter) -> None:
        try:
            outcome = self._load(reading, asked, result)
        except CannotDo as refusal:
            if isinstance(result, Content) and refusal.code != "bad_adapter":
                self._memory.discard(result)
            self._refuse(asked, refusal)
        else:
            self._unseen.append(_Unseen(self._registry.version, asked, outcome))
            self._settle(self._seen)  # it may have been seen already

    def _load(self, reading: _Reading, asked: Asked, result: Content | BadAdapter) -> str:
        """Return the outcome of a load that has been read. Raises ``CannotDo``."""
        operation, name = asked.operation, reading.name
        assert isinstance(operation, LoadAdapter)
        problem = result if isinstance(result, BadAdapter) else self._too_large(result)
        if problem is not None:
            if isinstance(result, Content):
                self._memory.discard(result)
            text = f"the adapter {name!r} cannot be loaded: {problem}"
            if isinstance(result, Unavailable):
                raise CannotDo("source_unavailable", text, "source", UNAVAILABLE_RETRY_S)
            code = "cancelled" if isinstance(result, GivenUp) else "bad_adapter"
            raise CannotDo(code, text, "source")
        assert isinstance(result, Content)
        entry = self._registry.find(name)
        # One content may be talked to in several ways: those belong to the name.
        is_same = entry is not None and (entry.digest, entry.defaults) == (
            result.digest,
            result.facts.defaults,
        )
        is_used = entry is not None and entry.digest != ""
        if is_used and not is_same and not operation.replace:
            text = f"name: {name!r} means another adapter; replace it in place, or unload it first"
            raise CannotDo("name_taken", text, "name")
        is_pin = operation.pinned or (operation.pinned is None and self._registry.is_pinned(name))
        if is_pin:
            self._check_pin(name, result.facts, on_device=self._registry.is_on_device(name))
        try:
            if self._memory.make_room(result.digest, result.facts.size_bytes):
                self._memory.put(result)
            elif is_pin:
                raise full()
            else:
                self._memory.discard(result)
        except FileError as error:
            raise CannotDo("bad_adapter", f"the adapter {name!r}: {error}", "source") from None
        self._counts["loads"] += 1
        if not is_same:
            self._register(reading, result, pinned=operation.pinned)
        elif operation.pinned is not None:
            self._registry.set_pinned(name, pinned=operation.pinned)
            self._keep_or_not(result.digest)
        return "already_loaded" if is_same else "replaced" if is_used else "loaded"

    def _register(self, reading: _Reading, adapter: Content, *, pinned: bool | None = None) -> None:
        """Let a name mean an adapter, pinned or not or as it was, and what it meant leave."""
        before = self._registry.find(reading.name)
        for asked in self._leaving.return_(adapter.digest):
            # It was unloaded, and is back: the name that the client gave up is gone all the same.
            self._unseen.append(_Unseen(self._registry.version, asked, "unloaded"))
        entry = self._entry(reading.name, adapter.source, adapter, None)
        self._registry.put(entry, adapter.facts)
        self._again.forget(reading.name)
        if pinned is not None:
            self._registry.set_pinned(reading.name, pinned=pinned)
        # First what is kept: what leaves takes a place, for which somebody else may have to go.
        self._keep_or_not(adapter.digest)
        if before is not None:
            self._leave(before.digest)

    def _entry(
        self, name: str, root: str, adapter: Content | None, refused: str | None
    ) -> AdapterEntry:
        started_ns = self._now_ns if self._started_ns is None else self._started_ns
        created_s = self._started_s + (self._now_ns - started_ns) // 1_000_000_000
        if adapter is None:
            return AdapterEntry(name, root, "", 0, created_s, refused)
        facts = adapter.facts
        return AdapterEntry(
            name,
            root,
            facts.digest,
            facts.rank,
            created_s,
            refused,
            tokens_added=facts.tokens_added,
            is_additive=facts.is_additive,
            invocation_tokens=facts.invocation_tokens,
            defaults=facts.defaults,
        )

    def _leave(self, digest: str) -> bool:
        """Let content go that a name meant until now, unless another one does: does it go?"""
        if not digest or self._registry.names(digest):
            self._keep_or_not(digest)
            return False
        self._leaving.leave(digest, self._registry.version)
        self._keep_or_not(digest)
        return True

    def _keep_or_not(self, digest: str) -> None:
        """Keep in host memory what is pinned by name; what running requests may need goes last."""
        if self._registry.is_wanted(digest):
            self._memory.cache.keep(digest)
        elif digest in self._leaving:
            self._memory.spare(digest)
        else:
            self._memory.let_go(digest)

    def _settle(self, version: int) -> None:
        """The tokenizer resolves names by this catalog: answer, and retire what has no name."""
        while self._unseen and self._unseen[0].version <= version:
            _, asked, outcome = self._unseen.popleft()
            entry = self._registry.find(asked.operation.name or "")
            is_gone = outcome == "unloaded" or entry is None
            self._answer(asked, outcome, [] if is_gone or entry is None else [entry])
        self._seen = version
        for retire in self._leaving.seen(version):
            self._outbox += [Send(scheduler, retire) for scheduler in self._schedulers]

    def _forget(self, scheduler: str, digest: str, version: int) -> None:
        unloads = self._leaving.retired(scheduler, digest, version)
        if unloads is None:
            return
        self._memory.drop(digest)
        self._registry.forget(digest)
        for asked in unloads:
            self._answer(asked, "unloaded", [])

    # ---- the watched folder ---------------------------------------------------------------------

    def _scan(self) -> None:
        """Know the names of new sub-folders, and forget those that are gone."""
        for name, path in self._folder.scan(self._now_ns):
            entry = self._registry.find(name)
            if name in self._lines:
                continue
            if path is None:
                if entry is not None and entry.root == self._folder.path(name):
                    self._registry.remove(name)
                    self._leave(entry.digest)
            elif entry is None and name != self._base_name and len(self._registry) < NAMES_MAX:
                self._registry.put(self._entry(name, path, None, None))
            elif entry is not None and entry.refused is not None and entry.root == path:
                # It may have been half copied: whoever asks next has it read again.
                self._registry.put(self._entry(name, path, None, None))

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
            self._outbox.append(Send(asked, answer))
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
            self._registry.set_pinned(entry.name, pinned=False)
            self._keep_or_not(entry.digest)

    # ---- answers --------------------------------------------------------------------------------

    def _refuse(self, asked: Asked, refusal: CannotDo) -> None:
        self._outbox.append(Send(self._schedulers[0], asked.refuse(refusal)))

    def _answer(self, asked: Asked, outcome: str, entries: list[AdapterEntry]) -> None:
        states = [self._state(entry) for entry in entries]
        answer = AdapterAnswer(asked.operation.label, outcome, states)
        self._outbox.append(Send(self._schedulers[0], AdapterReply(asked.client, answer)))

    def _state(self, entry: AdapterEntry) -> AdapterState:
        resident = self._memory.cache.get(entry.digest)
        return AdapterState(
            name=entry.name,
            version=entry.version,
            digest=entry.digest or None,
            root=entry.root,
            rank=entry.rank or None,
            size_bytes=self._registry.size_bytes(entry.digest) if entry.digest else None,
            tier="host" if resident else "disk",
            pinned=self._registry.is_pinned(entry.name),
            pinned_on_device=self._registry.is_on_device(entry.name),
            requests=0,
            requests_total=0,
            created_s=entry.created_s,
            refused=entry.refused,
            defaults=entry.defaults.summary if entry.defaults else None,
        )

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
            "leaving": len(self._leaving),
            "waiting": len(self._fetcher),
            "loading": self._fetcher.loading,
            "evictions_total": cache.evictions,
            "hits_total": self._fetcher.hits,
            "misses_total": self._fetcher.misses,
            **{f"{name}_total": count for name, count in self._counts.items()},
            **self._loader.counters(),
        }
