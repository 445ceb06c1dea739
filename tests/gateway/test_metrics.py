from prometheus_client.parser import text_string_to_metric_families

from weft.gateway import metrics
from weft.runtime.client import Report
from weft.runtime.messages import METRIC_BUCKETS_S

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

LABELS = ("model", "digest", "tenant", "replica", "le")


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


def test_every_tenant_has_its_own_series_and_the_rest_share_one():
    found = samples(Report({}, [], [TENANT, OTHERS]))
    assert found["weft_tenant_requests_total", "alice"] == 3
    assert found["weft_tenant_rejected_total", "alice"] == 2
    assert found["weft_tenant_output_tokens_total", "alice"] == 45
    assert found["weft_tenant_service", "alice"] == 120.5
    assert found["weft_tenant_queue_seconds_bucket", "alice", "0.01"] == 3
    assert found["weft_tenant_requests_total", ""] == 9
