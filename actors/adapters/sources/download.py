"""From a source to an entry of the cache, with patience for what may pass."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping

from weft.actors.adapters.errors import BadAdapter, Unavailable
from weft.actors.adapters.sources.disk_cache import DiskCache
from weft.actors.adapters.sources.jobs import Fetched
from weft.actors.adapters.sources.origin import Found, Origin, check
from weft.runtime.sources import Remote

# Between attempts. What lasts longer is an outage, and somebody waits for the answer.
PAUSES_S = (0.5, 1.5, 3.0)


def fetch(
    source: Remote,
    origin: Origin,
    cache: DiskCache,
    limits: Mapping[str, int],
    *,
    may_be_old: bool,
    sleep: Callable[[float], None],
) -> Fetched:
    """Have a source in the cache. Raises ``BadAdapter``, or ``Unavailable`` for what may pass.

    ``may_be_old``: if the origin cannot be reached, what the source meant last time will do, and at
    once: requests wait for it.
    """
    for pause_s in (*PAUSES_S, None):
        try:
            return _fetch(source, origin, cache, limits)
        except Unavailable as error:
            old = cache.recall(str(source)) if may_be_old else None
            if old is not None:
                return Fetched(old, 0, str(error))
            if pause_s is None:
                raise
            sleep(pause_s)
    raise AssertionError("the last attempt returns or raises")


def _fetch(source: Remote, origin: Origin, cache: DiskCache, limits: Mapping[str, int]) -> Fetched:
    found = origin.find(source)
    root, size_bytes = str(found.source), 0
    try:
        with cache.filling(root, _bytes_max(found, limits)) as folder:
            for file in found.files if folder is not None else ():
                assert folder is not None
                origin.get(found, file, folder)
                size_bytes += (folder / file.name).stat().st_size
                check(found, file, folder / file.name, bytes_max=limits[file.name])
        if not source.is_exact:
            cache.remember(str(source), root)
    except OSError as error:
        raise _explained(error, found, limits) from None
    return Fetched(root, size_bytes)


def _bytes_max(found: Found, limits: Mapping[str, int]) -> int:
    """Return the most that a folder's files take: what is not told may be as large as allowed."""
    return sum(
        limits[file.name] if file.size_bytes is None else file.size_bytes for file in found.files
    )


def _explained(error: OSError, found: Found, limits: Mapping[str, int]) -> BadAdapter:
    source = found.source
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return Unavailable(f"the disk of adapter_cache is full: {source}; make room there")
        case errno.EFBIG:
            return BadAdapter(
                f"a file of {source} is larger than any adapter's for this base and "
                f"max_lora_rank ({max(limits.values())} bytes); is it the right one?"
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return BadAdapter(f"adapter_cache cannot be written: {error}; mend its rights")
    return Unavailable(f"the download of {source} broke off: {error}; try again later")
