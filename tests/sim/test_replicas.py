"""Two schedulers behind a router, in the simulator: what clients and operators see of them."""

import pytest

from tests.sim.client import Plan
from tests.sim.flow import ADAPTERS, Flow
from weft.runtime.config import TenantLimits
from weft.runtime.messages import Sampling, Submit
from weft.runtime.replicas import NUMBERS


def simple(label, model=None, *, after_ns=0, tenant=None, **sampling):
    options = {"max_tokens": 9, "seed": 1} | sampling
    submit = Submit(label, model, prompt="x", sampling=Sampling(**options), tenant=tenant)
    return Plan(submit, after_ns)


def owner(number):
    """The replica that gave a number to a sequence or a step."""
    return number // NUMBERS


def sequences(client):
    """The numbers of everything that a client was answered with."""
    return [
        end.sequence
        for heard in client.heard.values()
        for end in heard.ends.values()
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["adapter_aware", "total_tokens", "round_robin"])
def test_requests_are_spread_and_answered_as_by_one(method, model, folder):
    flow = Flow(1, model, folder, replicas=3, load_balance_method=method)
    models = (None, *ADAPTERS) * 10
    client = flow.join("ann", [simple(f"r{i}", name, seed=i) for i, name in enumerate(models)])
    flow.run()
    flow.assert_all_are_answered()
    flow.assert_all_is_back()
    numbers = sequences(client)
    assert len(set(numbers)) == len(numbers) == 60
    counts = [sum(owner(number) == replica for number in numbers) for replica in range(3)]
    assert min(counts) >= 10, counts


def test_steps_of_different_replicas_never_seem_to_be_shared(model, folder):
    flow = Flow(1, model, folder, replicas=2)
    client = flow.join("ann", [simple(f"r{i}", seed=i) for i in range(20)])
    flow.run()
    ends = [heard.ends[0] for heard in client.heard.values()]
    for end in ends:
        assert owner(end.sequence) == owner(end.first_step) == owner(end.last_step)


def test_a_stop_string_ends_its_sequence_at_whichever_replica(model, folder):
    flow = Flow(4, model, folder, replicas=2, max_num_seqs=2)
    made = [simple(f"r{i}", seed=i, max_tokens=60, stop=["e", "a"]) for i in range(20)]
    client = flow.join("ann", made)
    flow.run()
    flow.assert_all_are_answered()
    stopped = [
        heard.ends[0].sequence
        for heard in client.heard.values()
        if heard.ends[0].reason == "stop"
    ]  # fmt: skip
    assert {owner(number) for number in stopped} == {0, 1}


def test_a_cancelled_request_and_a_lost_client_leave_no_replica_with_anything(model, folder):
    flow = Flow(2, model, folder, replicas=2)
    cancelled = [simple(f"r{i}", seed=i, max_tokens=100) for i in range(12)]
    for plan in cancelled[::2]:
        plan.cancel_after_texts = 2
    flow.join("ann", cancelled)
    flow.join("bob", [simple(f"r{i}", max_tokens=100, n=3) for i in range(6)], leaving=(9, "kill"))
    flow.run()
    flow.assert_all_are_answered()
    flow.assert_all_is_back()


def test_who_finds_one_queue_full_is_served_by_the_other(model, folder):
    """One replica is stuck, with a full queue: turns would have it refuse half of what comes."""
    flow = Flow(
        3, model, folder, replicas=2, load_balance_method="round_robin", max_num_seqs=2,
        max_queued_requests=4,
    )  # fmt: skip
    flow.wait(flow.is_open)
    flow.world.pause("runner0_0", 60.0)
    made = [simple(f"r{i}", seed=i, after_ns=i * 50_000_000) for i in range(40)]
    client = flow.join("ann", made)
    flow.wait(lambda: all(heard.is_over or heard.accepted for heard in client.heard.values()))
    assert not any(heard.refused for heard in client.heard.values())
    stuck = len(flow.scheduler._requests)
    assert stuck >= 4  # who waits, and maybe who has rows
    assert flow.actors["router"]._moved == 20 - stuck
    flow.run()
    flow.assert_all_are_answered()
    flow.assert_all_is_back()


def test_all_queues_full_is_what_a_client_hears_of(model, folder):
    flow = Flow(1, model, folder, replicas=2, max_queued_requests=4, max_num_seqs=2)
    client = flow.join("ann", [simple(f"r{number}", seed=number) for number in range(100)])
    flow.run()
    refused = [heard.refused for heard in client.heard.values() if heard.refused]
    assert 0 < len(refused) < 100
    assert {refusal.code for refusal in refused} == {"queue_full"}
    flow.assert_all_are_answered()
    flow.assert_all_is_back()
    sections = flow.sections()
    assert sections["router"]["rejected_total"] > 0
    assert sections["router"]["moved_total"] > 0


def test_limits_hold_over_all_replicas_at_every_moment(model, folder):
    tenants = {"t": TenantLimits(max_concurrency=3)}
    flow = Flow(6, model, folder, replicas=2, tenants=tenants)
    client = flow.join(
        "ann",
        [simple(f"r{i}", tenant="t", seed=i, after_ns=i * 3_000_000) for i in range(60)],
    )
    most = 0

    def look():
        nonlocal most
        live = sum(s._requests.sequence_count for s in flow.schedulers.values())
        most = max(most, live)
        return client.is_over

    flow.wait(look)
    refused = [heard.refused for heard in client.heard.values() if heard.refused]
    assert {refusal.code for refusal in refused} == {"rate_limit_exceeded"}
    assert most == 3
    flow.run()
    flow.assert_all_is_back()


def test_metrics_of_adapters_and_tenants_are_sums_over_replicas(model, folder):
    flow = Flow(1, model, folder, replicas=2)
    plans = [simple(f"r{i}", ADAPTERS[i % 2], tenant=f"t{i % 3}", seed=i) for i in range(30)]
    client = flow.join("ann", plans)
    flow.run()
    inspector = flow.join("inspector", [])
    inspector.inspect()
    flow.wait(lambda: inspector.reports)
    [report] = inspector.reports
    assert sum(adapter.requests for adapter in report.adapters) == 30
    assert sum(sum(adapter.queue_s) for adapter in report.adapters) == 30
    assert {tenant.tenant: tenant.requests for tenant in report.tenants} == {
        "t0": 10, "t1": 10, "t2": 10,
    }  # fmt: skip
    output = sum(heard.ends[0].output_tokens for heard in client.heard.values())
    assert sum(adapter.output_tokens for adapter in report.adapters) == output
    assert sum(tenant.output_tokens for tenant in report.tenants) == output
    names = sorted(name for adapter in report.adapters for name in adapter.names)
    assert names == sorted(ADAPTERS[:2])
