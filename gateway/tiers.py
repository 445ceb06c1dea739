"""Where adapters lie, how they get there and leave, and who waits: for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from weft.runtime.client import Report
from weft.runtime.messages import LOAD_BUCKETS_S

TIERS = ("device", "host", "disk")


def of_tiers(report: Report) -> Iterator[Metric]:
    """Yield what is counted by tier. Several processes that count the same are added up."""

    def total(name: str) -> float:
        return sum(counters.get(name, 0.0) for counters in report.sections.values())

    store = report.sections.get("adapters", {})
    if not store:
        return
    there = GaugeMetricFamily(
        "weft_adapters", "Contents that lie there; one may lie in several tiers", labels=["tier"]
    )
    counts = (total("adapters_resident"), store["loaded"], store["known"])
    for tier, count in zip(TIERS, counts, strict=True):
        there.add_metric([tier], count)
    yield there
    evictions = CounterMetricFamily(
        "weft_adapter_evictions", "Adapters that had to leave", labels=["tier"]
    )
    evictions.add_metric(["device"], total("adapter_evictions_total"))
    evictions.add_metric(["host"], store["evictions_total"])
    yield evictions
    yield GaugeMetricFamily(
        "weft_adapter_host_bytes", "Host memory of adapters", value=store["loaded_bytes"]
    )
    yield GaugeMetricFamily(
        "weft_adapter_host_bytes_max", "What they may take of it", value=store["bytes_max"]
    )
    loads = HistogramMetricFamily(
        "weft_adapter_load_seconds",
        "Time to bring an adapter there: from disk to host memory, from there to the device",
        labels=["tier", "process"],
    )
    for load in report.loads:
        buckets = histogram(LOAD_BUCKETS_S, load["seconds"])
        loads.add_metric([load["tier"], load["process"]], buckets, load["seconds_sum"])
    yield loads


def of_requests(report: Report) -> Iterator[Metric]:
    """Yield which adapters requests run with and wait for, and where these were found."""
    labels = ["model", "digest"]
    adapters = [(model_labels(adapter), adapter) for adapter in report.adapters]
    hits = CounterMetricFamily(
        "weft_adapter_hits",
        "Requests by where their adapter lay when they came",
        labels=[*labels, "tier"],
    )
    for values, adapter in adapters:
        for tier, count in zip(TIERS, adapter.get("hits", ()), strict=False):
            if adapter["digest"] is not None:
                hits.add_metric([*values, tier], count)
    yield hits
    for state in ("running", "waiting"):
        gauge = GaugeMetricFamily(
            f"weft_adapter_requests_{state}", f"Requests that are {state} now", labels=labels
        )
        for values, adapter in adapters:
            gauge.add_metric(values, adapter.get(state, 0))
        yield gauge
    yield _info(report)


def _info(report: Report) -> Metric:
    """What routers between replicas read of vLLM as ``vllm:lora_requests_info``."""

    def names(state: str) -> str:
        return ",".join(
            name
            for adapter in report.adapters
            if adapter["digest"] is not None and adapter.get(state)
            for name in adapter["names"]
        )

    most = [counters.get("adapters_in_batch_max", 0) for counters in report.sections.values()]
    info = GaugeMetricFamily(
        "weft_lora_requests_info",
        "Adapters of requests, as labels; the value is the time",
        labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
    )
    info.add_metric(
        [f"{max(most, default=0):.0f}", names("running"), names("waiting")], time.time()
    )
    return info


def model_labels(adapter: dict[str, Any]) -> list[str]:
    """Return what clients call an adapter, and its digest."""
    return [",".join(adapter["names"]), adapter["digest"] or ""]


def histogram(edges_s: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Return the buckets of a histogram as Prometheus has them: cumulative."""
    edges = [*(str(edge) for edge in edges_s), "+Inf"]
    return list(zip(edges, map(float, accumulate(counts)), strict=True))
