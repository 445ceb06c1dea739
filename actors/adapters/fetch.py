"""Who waits for an adapter to be in host memory, and how it gets there."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from weft.actors.adapters.asked import Asked, CannotDo
from weft.actors.adapters.cache import Resident
from weft.actors.adapters.errors import BadAdapter
from weft.actors.adapters.files import FileError
from weft.actors.adapters.loader import REASON_CHARACTERS_MAX, Loaded, Loader
from weft.actors.adapters.memory import HostMemory
from weft.actors.adapters.registry import Registry

NO_ROOM_RETRY_S = 1.0


class Want(NamedTuple):
    """Whoever wants an adapter there: a client, or the scheduler (None), which pins it."""

    digest: str
    asked: Asked | None


class _Fetch(NamedTuple):
    digest: str
    ticket: int
    source: str
    others: tuple[str, ...]  # where it may be found as well


class Fetcher:
    """A queue, answered in order of arrival; who is at its head is being fetched.

    A scheduler's pin that finds every place pinned waits for a ``Release``; a client is refused.
    """

    def __init__(self, registry: Registry, memory: HostMemory, loader: Loader) -> None:
        self.hits = 0  # of the scheduler: it was there
        self.misses = 0
        self._registry = registry
        self._memory = memory
        self._loader = loader
        self._waiting: deque[Want] = deque()
        self._fetch: _Fetch | None = None
        self._problem: CannotDo | None = None  # with the adapter of the one at the head

    def __len__(self) -> int:
        return len(self._waiting)

    def want(self, want: Want) -> None:
        """Wait for an adapter."""
        self._waiting.append(want)
        if want.asked is None:
            is_there = self._memory.cache.get(want.digest) is not None
            self.hits += is_there
            self.misses += not is_there

    def forget_scheduler(self) -> None:
        """Drop the wants of a scheduler that is gone."""
        self._waiting = deque(want for want in self._waiting if want.asked is not None)
        self._problem = None

    def grant(self) -> tuple[Want, Resident | CannotDo] | None:
        """Return the one at the head with what it gets, or begin to fetch it."""
        if not self._waiting:
            return None
        want = self._waiting[0]
        cache = self._memory.cache
        resident = cache.get(want.digest) if want.asked else cache.pin(want.digest)
        result: Resident | CannotDo | None = resident or self._problem
        if result is None and not self._memory.has_room_for(want.digest) and want.asked:
            text = "host memory is full of adapters in use; try again later"
            result = CannotDo("queue_full", text, None, NO_ROOM_RETRY_S)
        if result is None:
            if self._fetch is None and self._memory.has_room_for(want.digest):
                self._begin(want.digest)
                return self.grant() if self._problem else None
            return None
        self._waiting.popleft()
        self._problem = None
        return want, result

    def take(self, loaded: Loaded) -> None:
        """Take in what was read for the one at the head."""
        fetch, result = self._fetch, loaded.result
        assert fetch is not None
        assert fetch.ticket == loaded.ticket
        self._fetch = None
        is_awaited = bool(self._waiting) and self._waiting[0].digest == fetch.digest
        if not is_awaited:
            return  # the scheduler that wanted it is gone
        if isinstance(result, BadAdapter):
            problem: Exception = result
        elif result.digest != fetch.digest:
            text = f"{fetch.source} has changed since it was checked; load it again to take it over"
            problem = BadAdapter(text)
        else:
            try:
                if self._memory.has_room_for(fetch.digest):
                    self._memory.put(result)
                return
            except FileError as error:
                problem = error
                fetch = fetch._replace(others=())
        if fetch.others:
            self._start(fetch.digest, fetch.others)
        else:
            self._fail(problem)

    def _begin(self, digest: str) -> None:
        sources = tuple(self._registry.sources(digest))
        if sources:
            self._start(digest, sources)
        else:
            self._fail(BadAdapter(f"no adapter has the digest {digest[:64]}"))

    def _start(self, digest: str, sources: tuple[str, ...]) -> None:
        ticket = self._loader.start(sources[0])
        self._fetch = _Fetch(digest, ticket, sources[0], sources[1:])

    def _fail(self, problem: Exception) -> None:
        self._problem = CannotDo("bad_adapter", str(problem)[:REASON_CHARACTERS_MAX], "name")
