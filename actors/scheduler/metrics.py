"""What the scheduler counts for each adapter."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Set
from dataclasses import dataclass, field

from weft.actors.scheduler.sequence import Request
from weft.runtime.messages import METRIC_BUCKETS_S, AdapterMetrics, End

# Names remembered for one adapter: an adapter may be registered under any number of them.
NAMES_MAX = 8


@dataclass(slots=True)
class Histogram:
    """Counts of durations in METRIC_BUCKETS_S, and one more for those beyond the last."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(METRIC_BUCKETS_S) + 1))
    sum_s: float = 0.0

    def add(self, duration_ns: int) -> None:
        """Count one duration."""
        seconds = duration_ns / 1e9
        self.counts[bisect_left(METRIC_BUCKETS_S, seconds)] += 1
        self.sum_s += seconds


@dataclass(slots=True)
class AdapterCounters:
    """One adapter's, or the base's."""

    names: list[str] = field(default_factory=list)
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    queue: Histogram = field(default_factory=Histogram)
    first_token: Histogram = field(default_factory=Histogram)


class Metrics:
    """Counters by adapter digest; None is the base."""

    def __init__(self) -> None:
        self._adapters: dict[str | None, AdapterCounters] = {}
        self.rejected = 0

    def accepted(self, request: Request) -> None:
        """Count a request that will be answered."""
        counters = self._of(request)
        counters.requests += 1
        counters.prompt_tokens += len(request.generate.prompt)
        name = request.generate.model
        if name not in counters.names and len(counters.names) < NAMES_MAX:
            counters.names.append(name)

    def admitted(self, request: Request, now_ns: int) -> None:
        """Count how long a request's first sequence waited."""
        request.admitted_ns = now_ns
        counters = self._of(request)
        counters.queue.add(now_ns - request.accepted_ns)
        counters.cached_tokens += request.sequences[0].cached_tokens or 0

    def first_token(self, request: Request, now_ns: int) -> None:
        """Count how long a request's first token took."""
        request.first_token_ns = now_ns
        self._of(request).first_token.add(now_ns - request.accepted_ns)

    def ended(self, request: Request, end: End) -> None:
        """Count a sequence's output."""
        self._of(request).output_tokens += end.output_tokens

    def requests(self, digest: str) -> int:
        """Return how many requests an adapter has had."""
        counters = self._adapters.get(digest)
        return counters.requests if counters else 0

    def forget(self, digest: str) -> None:
        """Forget an adapter that has no name any more, so that there are no more than names."""
        self._adapters.pop(digest, None)

    def report(self, resident: Set[str]) -> list[AdapterMetrics]:
        """Return the counters of every adapter that was ever used."""
        return [
            AdapterMetrics(
                digest=digest,
                names=counters.names,
                requests=counters.requests,
                prompt_tokens=counters.prompt_tokens,
                cached_tokens=counters.cached_tokens,
                output_tokens=counters.output_tokens,
                queue_s=list(counters.queue.counts),
                queue_s_sum=counters.queue.sum_s,
                first_token_s=list(counters.first_token.counts),
                first_token_s_sum=counters.first_token.sum_s,
                resident=digest is None or digest in resident,
            )
            for digest, counters in self._adapters.items()
        ]

    def _of(self, request: Request) -> AdapterCounters:
        return self._adapters.setdefault(request.generate.adapter, AdapterCounters())
