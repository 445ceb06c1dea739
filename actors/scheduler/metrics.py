"""What the scheduler counts for each adapter and each tenant."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field

from weft.actors.scheduler.sequence import Request
from weft.runtime.messages import (
    METRIC_BUCKETS_S,
    AdapterMetrics,
    End,
    Generate,
    TenantMetrics,
)

# Names remembered for one adapter: an adapter may be registered under any number of them.
NAMES_MAX = 8

# Tenants with counters of their own, those of the configuration included. Others share one set, for
# whoever may choose a ``user`` makes up as many names as they like.
TENANTS_MAX = 256


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


@dataclass(slots=True)
class TenantCounters:
    """One tenant's, or those of all that have none of their own."""

    requests: int = 0
    rejected: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    queue: Histogram = field(default_factory=Histogram)


class Metrics:
    """Counters by adapter digest, where None is the base; and by tenant, None being all others.

    A request of several adapters counts for each of them.
    """

    def __init__(self, tenants: Iterable[str] = ()) -> None:
        """``tenants`` have counters from the start."""
        self._adapters: dict[str | None, AdapterCounters] = {}
        self._tenants: dict[str | None, TenantCounters] = {
            tenant: TenantCounters() for tenant in tenants
        }
        self.rejections = 0

    def rejected(self, generate: Generate) -> None:
        """Count a request that will not be answered."""
        self.rejections += 1
        self._of_tenant(generate.tenant).rejected += 1

    def accepted(self, request: Request) -> None:
        """Count a request that will be answered."""
        for counters in self._of(request):
            counters.requests += 1
            counters.prompt_tokens += len(request.generate.prompt)
        tenant = self._of_tenant(request.tenant.name)
        tenant.requests += 1
        tenant.prompt_tokens += len(request.generate.prompt)
        for use in request.generate.adapters:
            self._note_name(use.digest, use.name)
        if not request.adapters:
            self._note_name(None, request.generate.model)

    def admitted(self, request: Request, now_ns: int) -> None:
        """Count how long a request's first sequence waited."""
        request.admitted_ns = now_ns
        for counters in self._of(request):
            counters.queue.add(now_ns - request.accepted_ns)
            counters.cached_tokens += request.sequences[0].cached_tokens or 0
        self._of_tenant(request.tenant.name).queue.add(now_ns - request.accepted_ns)

    def first_token(self, request: Request, now_ns: int) -> None:
        """Count how long a request's first token took."""
        request.first_token_ns = now_ns
        for counters in self._of(request):
            counters.first_token.add(now_ns - request.accepted_ns)

    def ended(self, request: Request, end: End) -> None:
        """Count a sequence's output."""
        for counters in self._of(request):
            counters.output_tokens += end.output_tokens
        self._of_tenant(request.tenant.name).output_tokens += end.output_tokens

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

    def report_tenants(self, counter: Callable[[str], float]) -> list[TenantMetrics]:
        """Return the counters of tenants; ``counter`` is a tenant's virtual one."""
        return [
            TenantMetrics(
                tenant=tenant,
                requests=counters.requests,
                rejected=counters.rejected,
                prompt_tokens=counters.prompt_tokens,
                output_tokens=counters.output_tokens,
                queue_s=list(counters.queue.counts),
                queue_s_sum=counters.queue.sum_s,
                counter=0.0 if tenant is None else counter(tenant),
            )
            for tenant, counters in self._tenants.items()
        ]

    def _of_tenant(self, name: str) -> TenantCounters:
        if name in self._tenants or len(self._tenants) < TENANTS_MAX:
            return self._tenants.setdefault(name, TenantCounters())
        return self._tenants.setdefault(None, TenantCounters())

    def _note_name(self, digest: str | None, name: str) -> None:
        names = self._adapters[digest].names
        if name not in names and len(names) < NAMES_MAX:
            names.append(name)

    def _of(self, request: Request) -> list[AdapterCounters]:
        """Return the counters of each adapter of a request, or the base's."""
        return [
            self._adapters.setdefault(digest, AdapterCounters())
            for digest in request.adapters or (None,)
        ]
