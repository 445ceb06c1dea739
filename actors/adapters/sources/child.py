"""The process that downloads: ``python -m weft.actors.adapters.sources.child PARENT``.

Standard input is a socket of packets: first ``Setup``, then a ``Job`` for each answer. It needs the
network, and the credentials of whoever runs weft; it can write into the cache alone, no file larger
than an adapter's, and dies with its parent, who ends it if it takes too long. What it downloads it
does not look into: that is for those who can do nothing else.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from weft.actors import confine
from weft.actors.adapters.errors import BadAdapter, Unavailable
from weft.actors.adapters.loader import REASON_CHARACTERS_MAX
from weft.actors.adapters.sources.disk_cache import DiskCache
from weft.actors.adapters.sources.download import fetch
from weft.actors.adapters.sources.hub import Hub, HubCache, is_offline
from weft.actors.adapters.sources.jobs import Answer, Failed, Fetched, Job, Setup
from weft.actors.adapters.sources.origin import Origin, limits
from weft.actors.adapters.sources.urls import Urls
from weft.actors.children import PACKET_BYTES_MAX
from weft.runtime import sources
from weft.runtime.sources import HUB, Remote


def main() -> None:
    """Answer jobs until the socket is closed."""
    confine.die_with(int(sys.argv[1]))
    jobs = socket.socket(fileno=os.dup(0))
    setup = msgspec.msgpack.decode(jobs.recv(PACKET_BYTES_MAX), type=Setup)
    table = limits(setup.weights_bytes_max)
    cache = DiskCache(Path(setup.folder), setup.bytes_max)
    confine.write_only_into(Path(setup.folder), file_bytes=max(table.values()))
    while packet := jobs.recv(PACKET_BYTES_MAX):
        job = msgspec.msgpack.decode(packet, type=Job)
        jobs.send(msgspec.msgpack.encode(_answer(job, cache, table)))


def _answer(job: Job, cache: DiskCache, table: Mapping[str, int]) -> Answer:
    source = sources.parse(job.source)
    assert isinstance(source, Remote), job.source
    try:
        origin = _origin(source, table)
        if isinstance(origin, HubCache) and (known := cache.recall(job.source)) is not None:
            return Fetched(known, 0)
        return fetch(source, origin, cache, table, may_be_old=job.may_be_old, sleep=time.sleep)
    except BadAdapter as error:
        return Failed(str(error)[:REASON_CHARACTERS_MAX], isinstance(error, Unavailable))


def _origin(source: Remote, table: Mapping[str, int]) -> Origin:
    if source.scheme != HUB:
        return Urls(table)
    return HubCache(table) if is_offline() else Hub(table)


if __name__ == "__main__":
    main()
