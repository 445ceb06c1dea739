"""What the scheduler counts for each adapter and each tenant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import msgspec

from weft.actors.scheduler.sequence import TIERS, Request
from weft.runtime.histogram import Histogram
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


Counted = TypeVar("Counted", AdapterMetrics, TenantMetrics)

_histogram = partial(Histogram, METRIC_BUCKETS_S)


@dataclass(slots=True)
class AdapterCounters:
    """One adapter's, or the base's."""

    names: list[str] = field(default_factory=list)
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    queue: Histogram = field(default_factory=_histogram)
    first_token: Histogram = field(default_factory=_histogram)
    hits: list[int] = field(default_factory=lambda: [0] * len(TIERS))


@dataclass(slots=True)
class TenantCounters:
    """One tenant's, or those of all that have none of their own."""

    requests: int = 0
    rejected: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    queue: Histogram = field(default_factory=_histogram)


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

    def rejected(self, generate: Generate | None) -> None:
        """Count a request that is not taken; None: it may yet be taken by somebody else."""
        self.rejections += 1
        if generate is not None:
            self._of_tenant(generate.tenant).rejected += 1

    def accepted(self, request: Request) -> None:
        """Count a request that will be answered."""
        for counters in self._of(request):
            counters.requests += 1
            counters.prompt_tokens += len(request.generate.prompt)
        tenant = self._of_tenant(request.tenant.name)
        tenant.requests += 1
        tenant.prompt_tokens += len(request.generate.prompt)
        self.came(request)

    def came(self, request: Request) -> None:
        """Know the names of what a request uses that was counted elsewhere."""
        self._of(request)
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
            if request.tier is not None:
                counters.hits[TIERS.index(request.tier)] += 1
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

    def of(self, digest: str) -> AdapterCounters:
        """Return an adapter's counters: zeros, if it has never been used."""
        return self._adapters.get(digest) or AdapterCounters()

    def forget(self, digest: str) -> None:
        """Forget an adapter that has no name any more, so that there are no more than names."""
        self._adapters.pop(digest, None)

    def report(self, resident: Set[str], requests: Iterable[Request] = ()) -> list[AdapterMetrics]:
        """Return the counters of every adapter that was ever used.

        ``resident`` are on the device now; ``requests`` are those that are not over.
        """
        running: Counter[str | None] = Counter()
        waiting: Counter[str | None] = Counter()
        for request in requests:
            count = waiting if request.admitted_ns is None else running
            count.update(request.adapters or (None,))
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
                hits=list(counters.hits),
                running=running[digest],
                waiting=waiting[digest],
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


def summed(first: list[Counted], second: list[Counted]) -> list[Counted]:
    """Return what two schedulers have counted together, of each adapter or each tenant."""
    together = {_key(each): each for each in first}
    for each in second:
        known = together.get(_key(each))
        together[_key(each)] = each if known is None else _sum(known, each)
    return list(together.values())


def together(first: list[int], second: list[int]) -> list[int]:
    """Return the sums of two lists of counts; an empty one counts nothing."""
    if not (first and second):
        return list(first or second)
    return [one + other for one, other in zip(first, second, strict=True)]


def mean(first: tuple[float | None, int], second: tuple[float | None, int]) -> float | None:
    """Return the mean of two means of so many; None: of nothing."""
    known = [(value, count) for value, count in (first, second) if value is not None and count]
    total = sum(count for _, count in known)
    return sum(value * count for value, count in known) / total if total else None


def _key(counted: AdapterMetrics | TenantMetrics) -> str | None:
    return counted.digest if isinstance(counted, AdapterMetrics) else counted.tenant


def _sum(first: Counted, second: Counted) -> Counted:
    pairs = zip(msgspec.structs.astuple(first), msgspec.structs.astuple(second), strict=True)
    return type(first)(*(_added(*pair) for pair in pairs))


def _added(first: Any, second: Any) -> Any:
    """Return the sum of two fields' values: of names and keys, what is in either."""
    match first:
        case bool():
            return first or second
        case int() | float():
            return first + second
        case list() if all(isinstance(name, str) for name in (*first, *second)):
            return list(dict.fromkeys((*first, *second)))[:NAMES_MAX]
        case list():
            return together(first, second)
        case _:
            assert first == second
            return first
