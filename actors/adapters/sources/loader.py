"""Reads adapters wherever they are: those of other places are downloaded first, each once."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from weft.actors.adapters.adapter import DIGEST_FORMAT
from weft.actors.adapters.errors import BadAdapter, GivenUp, Unavailable
from weft.actors.adapters.loader import Content, Loaded
from weft.actors.adapters.sandbox import SandboxedLoader
from weft.actors.adapters.sources.disk_cache import DiskCache, Lease
from weft.actors.adapters.sources.downloads import Downloads
from weft.actors.adapters.sources.jobs import Fetched, Job
from weft.runtime import sources
from weft.runtime.sources import Remote

_log = logging.getLogger("weft.adapters")


class _Wanted(NamedTuple):
    ticket: int
    source: Remote
    with_file: bool
    is_retry: bool = False  # its copy in the cache was damaged


class _Reading(NamedTuple):
    ticket: int
    # Of what was downloaded:
    wanted: _Wanted | None = None
    root: str = ""
    lease: Lease | None = None


@dataclass(slots=True)
class _Sharing:
    """Who waits for a download, and who came when it was already looked up what there is."""

    now: list[_Wanted]
    later: list[_Wanted] = field(default_factory=list)


class SourcedLoader:
    """A loader (see ``loader.Loader``) of folders, hub repositories and URLs.

    What several want at once is downloaded once. Whoever asks while a source is being downloaded
    that may have changed meanwhile has it looked up once more, which costs one question.
    """

    def __init__(self, folders: SandboxedLoader, downloads: Downloads, cache: DiskCache) -> None:
        self._folders = folders
        self._downloads = downloads
        self._cache = cache
        self._tickets = 0
        self._sharing: dict[Job, _Sharing] = {}
        self._readings: dict[int, _Reading] = {}  # by the ticket of ``folders``
        self._done: list[Loaded] = []
        self._counts = dict.fromkeys(
            ("downloads", "download_failures", "download_bytes", "disk_hits"), 0
        )
        cache.sweep()

    def start(self, source: str, *, with_file: bool) -> int:
        """Queue a folder, or a remote one in the form in which ``sources`` writes it.

        Without a file it is only to be known: then a source that cannot be looked up may mean what
        it meant last time.
        """
        self._tickets += 1
        found = sources.parse(source)
        if isinstance(found, Remote):
            self._want(_Wanted(self._tickets, found, with_file))
        else:
            ticket = self._folders.start(found, with_file=with_file)
            self._readings[ticket] = _Reading(self._tickets)
        return self._tickets

    def finished(self) -> list[Loaded]:
        """Take in what was downloaded, have it read, and return what has been read."""
        for job, result in self._downloads.finished():
            sharing = self._sharing.pop(job)
            if sharing.later:
                self._sharing[job] = _Sharing(sharing.later)
                self._downloads.start(job)
            self._count(result)
            for wanted in sharing.now:
                self._take(wanted, result)
        for loaded in self._folders.finished():
            self._hear(loaded)
        done, self._done = self._done, []
        return done

    def wait(self) -> None:
        """Wait for a child's word, whichever kind is under way."""
        if self._done:
            return
        if self._folders.is_busy:
            self._folders.wait()
        else:
            self._downloads.wait()

    def cancel(self, ticket: int) -> bool:
        """Give up a download, unless others wait for it, or a folder that no child has begun."""
        for inner, reading in self._readings.items():
            if reading.ticket == ticket:
                return self._folders.cancel(inner)
        for job, sharing in self._sharing.items():
            for waiting in (sharing.now, sharing.later):
                for wanted in waiting:
                    if wanted.ticket == ticket:
                        waiting.remove(wanted)
                        self._done.append(Loaded(ticket, GivenUp()))
                        self._end_if_unwanted(job, sharing)
                        return True
        return False

    def counters(self) -> dict[str, float]:
        """Return what has been downloaded, and what was in the cache."""
        counts = {f"{name}_total": float(count) for name, count in self._counts.items()}
        return {"downloading": float(len(self._downloads)), **counts}

    def close(self) -> None:
        """End the children, and remove what they were writing."""
        self._downloads.close()
        self._folders.close()
        for reading in self._readings.values():
            if reading.lease is not None:
                reading.lease.close()
        self._cache.sweep()

    def check(self) -> None:
        """Assert that no ticket waits twice, and the invariants of the parts."""
        self._folders.check()
        self._downloads.check()
        tickets = [reading.ticket for reading in self._readings.values()]
        for sharing in self._sharing.values():
            assert sharing.now, "a download for nobody"
            tickets += [wanted.ticket for wanted in (*sharing.now, *sharing.later)]
        assert len(set(tickets)) == len(tickets), f"a ticket twice in {tickets}"

    def _want(self, wanted: _Wanted) -> None:
        """Read what is in the cache, and download what is not, or what may have changed."""
        source = wanted.source
        if source.is_exact and (lease := self._cache.lease(str(source))) is not None:
            self._counts["disk_hits"] += 1
            self._read(wanted, str(source), lease)
            return
        job = Job(str(source), may_be_old=not wanted.with_file)
        sharing = self._sharing.get(job)
        if sharing is None:
            self._sharing[job] = _Sharing([wanted])
            self._downloads.start(job)
        else:
            (sharing.now if source.is_exact else sharing.later).append(wanted)

    def _count(self, result: Fetched | BadAdapter) -> None:
        if isinstance(result, BadAdapter):
            self._counts["download_failures"] += 1
        elif result.size_bytes > 0:
            self._counts["downloads"] += 1
            self._counts["download_bytes"] += result.size_bytes

    def _take(self, wanted: _Wanted, result: Fetched | BadAdapter) -> None:
        if isinstance(result, BadAdapter):
            self._done.append(Loaded(wanted.ticket, result))
            return
        if result.problem is not None:
            _log.warning(
                "%s is taken for %s as before: %s", result.root, wanted.source, result.problem
            )
        lease = self._cache.lease(result.root)
        if lease is None:
            text = f"adapter_cache is too small: {result.root} has left it already; try again later"
            self._done.append(Loaded(wanted.ticket, Unavailable(text)))
            return
        self._read(wanted, result.root, lease)

    def _read(self, wanted: _Wanted, root: str, lease: Lease) -> None:
        ticket = self._folders.start(str(lease.folder), with_file=wanted.with_file)
        self._readings[ticket] = _Reading(wanted.ticket, wanted, root, lease)

    def _hear(self, loaded: Loaded) -> None:
        """Pass on what was read, unless it shows that the cache's copy is damaged."""
        reading = self._readings.pop(loaded.ticket)
        wanted, lease, result = reading.wanted, reading.lease, loaded.result
        if lease is not None:
            lease.close()
        if wanted is None or lease is None or isinstance(result, GivenUp):
            self._done.append(Loaded(reading.ticket, result))
        elif self._is_damaged(wanted, reading.root, result):
            self._cache.forget(reading.root)
            self._want(wanted._replace(is_retry=True))
        elif isinstance(result, Content):
            self._done.append(Loaded(reading.ticket, result._replace(source=reading.root)))
        else:
            reason = str(result).replace(str(lease.folder), reading.root)
            self._done.append(Loaded(reading.ticket, BadAdapter(reason)))

    def _is_damaged(self, wanted: _Wanted, root: str, result: Content | BadAdapter) -> bool:
        """Whether something else was read than when it had just been downloaded."""
        known = self._cache.digest(root)
        read = f"{DIGEST_FORMAT} {result.digest}" if isinstance(result, Content) else None
        is_damaged = known is not None and known != read and not wanted.is_retry
        # Another format's digest says nothing of the copy.
        if known is not None and not known.startswith(f"{DIGEST_FORMAT} "):
            is_damaged = False
        if is_damaged:
            if isinstance(result, Content) and result.file is not None:
                with suppress(FileNotFoundError):
                    Path(result.file).unlink()
        elif read is not None and known != read:
            self._cache.note_digest(root, read)
        return is_damaged

    def _end_if_unwanted(self, job: Job, sharing: _Sharing) -> None:
        if sharing.now:
            return
        self._downloads.cancel(job)
        del self._sharing[job]
        self._cache.sweep()
        if sharing.later:
            self._sharing[job] = _Sharing(sharing.later)
            self._downloads.start(job)
