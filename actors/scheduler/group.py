"""What the runners of one model have in common."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.runtime.messages import RunnerReady


class Runners:
    """The runners of one scheduler: which are ready, and in which of their lives.

    They live and die together, so those of one epoch are of use, and no mixture of two.
    """

    def __init__(self, roles: Sequence[str]) -> None:
        """``roles`` are by rank."""
        self.roles = roles
        self._ready: dict[str, RunnerReady] = {}  # by role

    def ready(self, role: str, ready: RunnerReady) -> RunnerReady | None:
        """Return what holds for all, once every runner of one life is ready."""
        assert role not in self._ready, f"{role} started twice"
        self._ready[role] = ready
        epochs = {each.epoch for each in self._ready.values()}
        if len(self._ready) < len(self.roles) or len(epochs) > 1:
            return None
        return agreed([self._ready[each] for each in self.roles])

    def lost(self, role: str) -> bool:
        """Hear that a process has ended; return whether a life that was ready is over by that."""
        lost = self._ready.get(role)
        if lost is None:
            return False
        self._ready = {r: each for r, each in self._ready.items() if each.epoch != lost.epoch}
        return True


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
