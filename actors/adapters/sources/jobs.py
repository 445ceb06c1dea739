"""What the store and a process that downloads for it tell each other."""

from __future__ import annotations

import msgspec


class Setup(msgspec.Struct, frozen=True):
    """Parent to child, once: the cache, and how large an adapter may be."""

    folder: str
    bytes_max: int  # of the cache
    weights_bytes_max: int  # of one adapter's weights


class Job(msgspec.Struct, frozen=True):
    """Parent to child: have this source in the cache."""

    source: str
    may_be_old: bool  # what it meant last time will do if it cannot be looked up


class Fetched(msgspec.Struct, frozen=True, tag="fetched", forbid_unknown_fields=True):
    """Child to parent: what a source means now, which is in the cache."""

    root: str
    size_bytes: int  # that came over the network; 0: it was there
    # Why it could not be looked up, and what it meant last time is told instead.
    problem: str | None = None


class Failed(msgspec.Struct, frozen=True, tag="failed", forbid_unknown_fields=True):
    """Child to parent, instead of ``Fetched``: why not, and whether it may be otherwise later."""

    reason: str
    is_transient: bool


Answer = Fetched | Failed
