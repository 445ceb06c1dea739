"""Who waits for an adapter to be in host memory, and how it gets there."""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from typing import NamedTuple

from weft.actors.adapters.asked import Asked, CannotDo, full
from weft.actors.adapters.cache import Resident
from weft.actors.adapters.errors import BadAdapter
from weft.actors.adapters.files import FileError
from weft.actors.adapters.loader import REASON_CHARACTERS_MAX, Content, Loaded, Loader
from weft.actors.adapters.memory import HostMemory
from weft.actors.adapters.registry import Registry
from weft.runtime.histogram import Histogram
from weft.runtime.messages import LOAD_BUCKETS_S


class Want(NamedTuple):
    """Who wants an adapter there: a client, or a scheduler by its role, which pins it."""

    digest: str
    asked: Asked | str
    is_missed: bool = False  # it was not there when it was asked for


class _Load(NamedTuple):
    """An adapter that is being read, from the first of the folders that may hold it."""

    digest: str
    folders: tuple[str, ...]
    problem: str  # with the folder before
    started_ns: int


class Fetcher:
    """A queue. What has to be read holds up nobody but those that ask for it.

    A scheduler's pin for which there is no room waits for a ``Release``, and so do those that come
    after it; a client is refused instead.

    Invariant, checked by ``check``: nothing is read twice at once.
    """

    def __init__(self, registry: Registry, memory: HostMemory, loader: Loader) -> None:
        self.hits = 0  # of schedulers: it was there
        self.misses = 0
        self.reads = Histogram(LOAD_BUCKETS_S)  # from disk to host memory
        self._registry = registry
        self._memory = memory
        self._loader = loader
        self._waiting: deque[Want] = deque()
        self._loading: dict[int, _Load] = {}  # by the loader's ticket
        self._failed: list[tuple[Want, CannotDo]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def loading(self) -> int:
        """Adapters that are being read."""
        return len(self._loading)

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits, and nothing is being read."""
        return not (self._waiting or self._loading or self._failed)

    def want(self, want: Want) -> None:
        """Wait for an adapter."""
        is_there = self._memory.cache.get(want.digest) is not None
        self._waiting.append(want._replace(is_missed=not is_there))
        if isinstance(want.asked, str):
            self.hits += is_there
            self.misses += not is_there

    def forget_scheduler(self, scheduler: str) -> None:
        """Drop the wants of a scheduler that is gone."""
        self._waiting = deque(want for want in self._waiting if want.asked != scheduler)
        self._failed = [failed for failed in self._failed if failed[0].asked != scheduler]

    def grant(self, now_ns: int) -> list[tuple[Want, Resident | CannotDo]]:
        """Return whom there is an answer for, and begin to read what is not there."""
        granted: list[tuple[Want, Resident | CannotDo]] = []
        wants, self._waiting = self._waiting, deque()
        loading = {load.digest for load in self._loading.values()}
        wanted = {want.digest for want in wants}
        is_full = False  # for schedulers: those after one without a place wait as well
        for want in wants:
            digest, asked, _ = want
            if digest in loading or (is_full and isinstance(asked, str)):
                self._waiting.append(want)
            elif resident := self._resident(want):
                granted.append((want, resident))
            elif self._has_room(digest, wanted):
                loading.add(digest)
                self._waiting.append(want)
                unknown = f"no adapter has the digest {digest[:64]}"
                folders = tuple(self._registry.sources(digest))
                self._begin(_Load(digest, folders, unknown, now_ns))
            elif isinstance(asked, str):
                is_full = True
                self._waiting.append(want)
            else:
                granted.append((want, full()))
        failed, self._failed = self._failed, []
        return granted + list(failed)

    def take(self, loaded: Loaded, now_ns: int) -> None:
        """Take in what was read."""
        load = self._loading.pop(loaded.ticket)
        if isinstance(loaded.result, Content):
            self.reads.add(now_ns - load.started_ns)
        problem = self._put(load, loaded.result)
        if problem is not None:
            self._begin(load._replace(folders=load.folders[1:], problem=problem))

    def check(self) -> None:
        """Assert the invariant."""
        digests = [load.digest for load in self._loading.values()]
        assert len(set(digests)) == len(digests), f"one is read twice: {digests}"

    def _resident(self, want: Want) -> Resident | None:
        cache, asked = self._memory.cache, want.asked
        if isinstance(asked, str):
            return cache.pin(want.digest, asked)
        return cache.get(want.digest)

    def _has_room(self, digest: str, wanted: Container[str]) -> bool:
        """Reserve room for what is about to be read: is there any?"""
        if not self._registry.sources(digest):
            return True  # nothing will be read
        return self._memory.make_room(digest, self._registry.size_bytes(digest), wanted)

    def _begin(self, load: _Load) -> None:
        """Read an adapter from the next of its folders, or say what was wrong with the last."""
        if load.folders:
            self._loading[self._loader.start(load.folders[0], with_file=True)] = load
            return
        self._memory.cache.give_up(load.digest)
        problem = CannotDo("bad_adapter", load.problem[:REASON_CHARACTERS_MAX], "name")
        self._failed += [(want, problem) for want in self._waiting if want.digest == load.digest]
        self._waiting = deque(want for want in self._waiting if want.digest != load.digest)

    def _put(self, load: _Load, result: Content | BadAdapter) -> str | None:
        """Put what has been read into host memory; return what is wrong with it, if so."""
        if isinstance(result, BadAdapter):
            return str(result)
        if result.digest != load.digest:
            self._memory.discard(result)
            folder = load.folders[0]
            return f"{folder} has changed since it was checked; load it again to take it over"
        try:
            self._memory.put(result)
        except FileError as error:
            return str(error)
        return None
