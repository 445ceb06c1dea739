"""What the runners of one model have in common."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.runtime.messages import RunnerReady


def agreed(ready: Sequence[RunnerReady]) -> RunnerReady:
    """Return what holds for a whole group; ``ready`` is what its runners say, by rank.

    A page is the same page on every rank, so there are as many as the smallest device holds.
    """
    ranks = [each.rank for each in ready]
    assert ranks == list(range(len(ready))), f"the runners are of ranks {ranks}"
    pages = min(each.pages for each in ready)
    together = msgspec.structs.replace(ready[0], pages=pages)
    for each in ready:
        same = msgspec.structs.replace(each, rank=0, pages=pages)
        assert same == together, f"rank {each.rank} says {same}, rank 0 {together}"
    return together
