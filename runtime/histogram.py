"""Durations, counted by how long they were."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """Counts of durations up to each of some edges, and one more for those beyond the last."""

    def __init__(self, edges_s: Sequence[float]) -> None:
        """``edges_s`` are seconds, ascending."""
        self._edges_s = edges_s
        self.counts = [0] * (len(edges_s) + 1)
        self.sum_s = 0.0

    def add(self, duration_ns: int) -> None:
        """Count one duration."""
        seconds = duration_ns / 1e9
        self.counts[bisect_left(self._edges_s, seconds)] += 1
        self.sum_s += seconds

    @property
    def mean_s(self) -> float | None:
        """Their mean; None: there was none."""
        count = sum(self.counts)
        return self.sum_s / count if count else None
