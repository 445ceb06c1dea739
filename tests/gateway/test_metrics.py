from prometheus_client.parser import text_string_to_metric_families

from weft.gateway import metrics
from weft.runtime.client import Report
from weft.runtime.messages import LOAD_BUCKETS_S, METRIC_BUCKETS_S

COUNTS = [1, 2] + [0] * (len(METRIC_BUCKETS_S) - 2) + [3]
ADAPTER = {
    "digest": "d1", "names": ["a", "b"], "requests": 6, "prompt_tokens": 60, "cached_tokens": 16,
    "output_tokens": 90, "queue_s": COUNTS, "queue_s_sum": 1.5, "first_token_s": COUNTS,
    "first_token_s_sum": 2.5, "resident": True,
}  # fmt: skip
BASE = ADAPTER | {"digest": None, "names": ["base"], "resident": False}


TENANT = {
    "tenant": "alice", "requests": 3, "rejected": 2, "prompt_tokens": 30, "output_tokens": 45,
    "queue_s": COUNTS, "queue_s_sum": 1.5, "counter": 120.5,
}  # fmt: skip
OTHERS = TENANT | {"tenant": None, "requests": 9, "counter": 0.0}

STORE = {
    "loaded": 7.0, "known": 30.0, "evictions_total": 4.0, "loaded_bytes": 9e6, "bytes_max": 1e9,
}  # fmt: skip
LOADS = [1, 2] + [0] * (len(LOAD_BUCKETS_S) - 2) + [3]

LABELS = ("model", "digest", "tenant", "replica", "tier", "process", "le")


def samples(report):
    return {
        (sample.name, *(sample.labels[key] for key in LABELS if key in sample.labels)): sample.value
        for family in text_string_to_metric_families(metrics.text(report).decode())
        for sample in family.samples
    }


def test_every_counter_of_every_process_is_there():
    found = samples(Report({"scheduler": {"rows": 2.0, "steps_total": 7.0}}, []))
    assert found["weft_scheduler_rows",] == 2
    assert found["weft_scheduler_steps_total",] == 7


def test_replicas_are_told_apart_by_a_label_and_add_up():
    sections = {
        "router": {"moved_total": 3.0},
        "scheduler0": {"rows": 2.0},
        "runner0_1": {"rows": 4.0},
        "scheduler1": {"rows": 5.0},
        "runner1_1": {"rows": 6.0},
    }
    found = samples(Report(sections, []))
    assert found["weft_router_moved_total",] == 3
    assert (found["weft_scheduler_rows", "0"], found["weft_scheduler_rows", "1"]) == (2, 5)
    assert (found["weft_runner1_rows", "0"], found["weft_runner1_rows", "1"]) == (4, 6)


def test_every_adapter_has_its_own_series():
    found = samples(Report({}, [ADAPTER, BASE]))
    assert found["weft_adapter_requests_total", "a,b", "d1"] == 6
    assert found["weft_adapter_cached_tokens_total", "base", ""] == 16
    assert found["weft_adapter_resident", "a,b", "d1"] == 1
    assert found["weft_adapter_resident", "base", ""] == 0


def test_histograms_are_cumulative():
    found = samples(Report({}, [ADAPTER]))
    name = "weft_adapter_queue_seconds"
    assert found[f"{name}_bucket", "a,b", "d1", "0.005"] == 1
    assert found[f"{name}_bucket", "a,b", "d1", "0.01"] == 3
    assert found[f"{name}_bucket", "a,b", "d1", "30.0"] == 3
    assert found[f"{name}_bucket", "a,b", "d1", "+Inf"] == 6
    assert found[f"{name}_count", "a,b", "d1"] == 6
    assert found[f"{name}_sum", "a,b", "d1"] == 1.5


def test_tiers_have_their_residents_evictions_and_load_times():
    sections = {
        "adapters": STORE,
        "scheduler": {"adapters_resident": 5.0, "adapter_evictions_total": 2.0},
    }
    loads = [
        {"process": "adapters", "tier": "host", "seconds": LOADS, "seconds_sum": 1.5},
        {"process": "runner0", "tier": "device", "seconds": LOADS, "seconds_sum": 0.5},
    ]
    found = samples(Report(sections, [], [], loads))
    assert [found["weft_adapters", tier] for tier in ("device", "host", "disk")] == [5, 7, 30]
    assert found["weft_adapter_evictions_total", "device"] == 2
    assert found["weft_adapter_evictions_total", "host"] == 4
    assert found["weft_adapter_host_bytes",] == 9e6
    assert found["weft_adapter_host_bytes_max",] == 1e9
    name = "weft_adapter_load_seconds"
    assert found[f"{name}_bucket", "host", "adapters", "0.001"] == 3
    assert found[f"{name}_count", "host", "adapters"] == 6
    assert found[f"{name}_sum", "device", "runner0"] == 0.5


def test_hits_are_counted_by_tier_and_the_base_has_none():
    hits = {"hits": [3, 2, 1]}
    found = samples(Report({}, [ADAPTER | hits, BASE | {"hits": [0, 0, 0]}]))
    tiers = ("device", "host", "disk")
    assert [found["weft_adapter_hits_total", "a,b", "d1", tier] for tier in tiers] == [3, 2, 1]
    assert ("weft_adapter_hits_total", "base", "", "device") not in found


def test_a_router_finds_which_adapters_run_and_wait():
    waiting = ADAPTER | {"digest": "d2", "names": ["c"], "running": 0, "waiting": 2}
    sections = {"scheduler": {"adapters_in_batch_max": 8.0}}
    adapters = [ADAPTER | {"running": 1, "waiting": 1}, waiting, BASE | {"running": 4}]
    report = Report(sections, adapters)
    [info] = [
        sample
        for family in text_string_to_metric_families(metrics.text(report).decode())
        for sample in family.samples
        if sample.name == "weft_lora_requests_info"
    ]
    assert info.labels == {
        "max_lora": "8", "running_lora_adapters": "a,b", "waiting_lora_adapters": "a,b,c",
    }  # fmt: skip
    assert info.value > 1e9
    found = samples(report)
    assert found["weft_adapter_requests_running", "base", ""] == 4
    assert found["weft_adapter_requests_waiting", "c", "d2"] == 2


def test_every_tenant_has_its_own_series_and_the_rest_share_one():
    found = samples(Report({}, [], [TENANT, OTHERS]))
    assert found["weft_tenant_requests_total", "alice"] == 3
    assert found["weft_tenant_rejected_total", "alice"] == 2
    assert found["weft_tenant_output_tokens_total", "alice"] == 45
    assert found["weft_tenant_service", "alice"] == 120.5
    assert found["weft_tenant_queue_seconds_bucket", "alice", "0.01"] == 3
    assert found["weft_tenant_requests_total", ""] == 9
