"""A report of the actors in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from weft.gateway import tiers
from weft.runtime.client import Report
from weft.runtime.messages import METRIC_BUCKETS_S
from weft.runtime.replicas import without_replica

# Of each adapter and of the base. ``model`` is what clients call it; several names of the same
# content are one adapter.
_LABELS = ("model", "digest")
_buckets = partial(tiers.histogram, METRIC_BUCKETS_S)

_COUNTERS = {
    "requests": "Requests accepted",
    "prompt_tokens": "Prompt tokens of accepted requests",
    "cached_tokens": "Prompt tokens found in the prefix cache",
    "output_tokens": "Tokens generated",
}
_HISTOGRAMS = {
    "queue": ("queue_s", "Time from acceptance to the first step"),
    "time_to_first_token": ("first_token_s", "Time from acceptance to the first token"),
}

# Of each tenant; those that have no series of their own are one, without a name.
_TENANT_COUNTERS = {
    "requests": "Requests accepted",
    "rejected": "Requests refused for a limit or a full queue",
    "prompt_tokens": "Prompt tokens of accepted requests",
    "output_tokens": "Tokens generated",
}


def text(report: Report) -> bytes:
    """Return all metrics, named ``weft_<process|adapter|tenant>_<counter>``."""
    registry = CollectorRegistry()
    registry.register(_Reported(report))
    return generate_latest(registry)


class _Reported(Collector):
    def __init__(self, report: Report) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        yield from _of_processes(self._report.sections)
        adapters = self._report.adapters
        for name, help_text in _COUNTERS.items():
            counter = CounterMetricFamily(f"weft_adapter_{name}", help_text, labels=_LABELS)
            for adapter in adapters:
                counter.add_metric(tiers.model_labels(adapter), adapter[name])
            yield counter
        for name, (field, help_text) in _HISTOGRAMS.items():
            histogram = HistogramMetricFamily(
                f"weft_adapter_{name}_seconds", help_text, labels=_LABELS
            )
            for adapter in adapters:
                buckets = _buckets(adapter[field])
                histogram.add_metric(tiers.model_labels(adapter), buckets, adapter[f"{field}_sum"])
            yield histogram
        resident = GaugeMetricFamily(
            "weft_adapter_resident", "1 if the adapter is on the device", labels=_LABELS
        )
        for adapter in adapters:
            resident.add_metric(tiers.model_labels(adapter), float(adapter["resident"]))
        yield resident
        yield from tiers.of_requests(self._report)
        yield from tiers.of_tiers(self._report)
        yield from _of_tenants(self._report.tenants)


def _of_tenants(tenants: Sequence[dict[str, Any]]) -> Iterator[Metric]:
    names = [tenant["tenant"] or "" for tenant in tenants]
    for field, help_text in _TENANT_COUNTERS.items():
        counter = CounterMetricFamily(f"weft_tenant_{field}", help_text, labels=["tenant"])
        for name, tenant in zip(names, tenants, strict=True):
            counter.add_metric([name], tenant[field])
        yield counter
    queue = HistogramMetricFamily(
        "weft_tenant_queue_seconds", "Time from acceptance to the first step", labels=["tenant"]
    )
    service = GaugeMetricFamily(
        "weft_tenant_service", "Weighted tokens by which turns are taken", labels=["tenant"]
    )
    for name, tenant in zip(names, tenants, strict=True):
        queue.add_metric([name], _buckets(tenant["queue_s"]), tenant["queue_s_sum"])
        service.add_metric([name], tenant["counter"])
    yield queue
    yield service


def _of_processes(sections: Mapping[str, Mapping[str, float]]) -> Iterator[Metric]:
    """Yield each process's counters; those of several replicas are one family, by label."""
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for role, counters in sections.items():
        process, replica = without_replica(role)
        labels = [] if replica is None else [str(replica)]
        for name, value in counters.items():
            full_name = f"weft_{process}_{name}"
            family = families.get(full_name)
            if family is None:
                kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                help_text = f"{name} of the process {process}"
                family = kind(full_name, help_text, labels=["replica"][: len(labels)])
                families[full_name] = family
            family.add_metric(labels, value)
    yield from families.values()
