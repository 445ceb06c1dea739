import pytest

from tests.actors.scheduler_harness import Harness
from weft.actors.scheduler import accounts
from weft.actors.scheduler.accounts import Accounts
from weft.actors.scheduler.policy import LOOK_AHEAD
from weft.runtime.config import Limits, TenantLimits
from weft.runtime.messages import Abort


def ask(harness, label, tenant="ann", **options):
    harness.generate(
        label, [5 + len(harness.begun) + i for i in range(6)], tenant=tenant, **options
    )


def refusals(harness):
    return {reject.refused.label: reject.refused for reject in harness.rejected}


def counter(harness, tenant):
    return harness.scheduler._payers.tenants.counter(tenant)


def test_a_prompts_token_costs_one_and_an_answers_two():
    harness = Harness()
    ask(harness, "a", max_tokens=5, stop_token_ids=[])
    harness.run()
    assert counter(harness, "ann") == 6 + 2 * 5


def test_what_the_prefix_cache_holds_costs_nothing():
    harness = Harness()
    for label in ("a", "b"):
        harness.generate(label, list(range(5, 27)), tenant=label, max_tokens=1, stop_token_ids=[])
        harness.run()
    assert harness.end("b").cached_tokens == 20
    assert counter(harness, "a") == 22 + 2
    assert counter(harness, "b") == 22 + 2 + (2 + 2)  # lifted to a's when it began to wait


def test_what_is_computed_again_after_a_preemption_costs_nothing():
    harness = Harness(pages=12, max_num_seqs=4, tenants={"ann": TenantLimits(weight=2.0)})
    for number in range(6):
        ask(harness, f"r{number}", max_tokens=24, stop_token_ids=[])
    harness.run()
    assert harness.scheduler._counters()["preemptions_total"] > 0
    cached = sum(harness.end(f"r{number}").cached_tokens for number in range(6))
    assert counter(harness, "ann") == (6 * (6 + 2 * 24) - cached) / 2
    harness.assert_all_is_back()


def test_more_requests_at_once_than_a_tenant_may_have_are_refused_until_one_ends():
    harness = Harness(tenants={"ann": TenantLimits(max_concurrency=2)})
    for label in ("a", "b", "c"):
        ask(harness, label, max_tokens=4)
    ask(harness, "d", tenant="bob")
    assert list(refusals(harness)) == ["c"]
    refused = refusals(harness)["c"]
    assert (refused.code, refused.retry_after_s) == ("rate_limit_exceeded", 1.0)
    assert "2 requests are under way and at most 2 may be" in refused.message
    harness.receive("tokenizer", Abort("c", "a"))
    ask(harness, "e")
    harness.run()
    assert set(harness.begun) == {"a", "b", "d", "e"}
    harness.assert_all_is_back()


def test_more_choices_than_may_ever_run_at_once_are_refused_for_good():
    harness = Harness(tenants={"ann": TenantLimits(max_concurrency=2)})
    ask(harness, "a", choices=3)
    refused = refusals(harness)["a"]
    assert (refused.code, refused.param, refused.retry_after_s) == ("invalid_value", "n", None)


def test_tokens_of_a_minute_are_prompts_at_once_and_answers_as_they_come():
    harness = Harness(tenants={"ann": TenantLimits(max_tokens_per_minute=12)})
    ask(harness, "a", max_tokens=10, stop_token_ids=[])
    harness.run()  # 6 and 10 tokens of 12: a debt of 4
    ask(harness, "b")
    refused = refusals(harness)["b"]
    assert refused.code == "rate_limit_exceeded"
    assert refused.retry_after_s == pytest.approx((4 + 6) * 5, abs=0.1)
    harness.now_ns += int(refused.retry_after_s * 1e9)
    ask(harness, "c")
    harness.run()
    assert set(harness.begun) == {"a", "c"}
    assert harness.end("a").output_tokens == 10


def test_an_adapters_limits_hold_for_all_tenants_together():
    limits = {"x": Limits(max_concurrency=1), "*": Limits(max_concurrency=2)}
    harness = Harness(adapter_limits=limits)
    ask(harness, "a", adapter="x")
    ask(harness, "b", tenant="bob", adapter="x")
    for label in ("c", "d", "e"):
        ask(harness, label, adapter="y")
    ask(harness, "f")
    assert list(refusals(harness)) == ["b", "e"]
    assert "of 'x'" in refusals(harness)["b"].message
    harness.run()
    harness.assert_all_is_back()


def test_tenants_that_are_not_named_have_the_limits_of_everyone_else():
    limits = {"*": TenantLimits(max_concurrency=1), "ann": TenantLimits()}
    harness = Harness(tenants=limits)
    for label, tenant in (("a", "ann"), ("b", "ann"), ("c", "bob"), ("d", "bob"), ("e", "eve")):
        ask(harness, label, tenant)
    assert list(refusals(harness)) == ["d"]


def test_made_up_names_fill_no_memory(monkeypatch):
    monkeypatch.setattr(accounts, "IDLE_MAX", 3)
    table = Accounts({})
    known = [table.get(name, 0) for name in "abcde"]
    assert len(table) == 0  # nothing is held for who is only asked about
    for account in known:
        account.counter = 7.0
        table.take(account, 2)
    table.check(dict.fromkeys("abcde", 2))
    for account in known:
        table.give_back(account)
        table.give_back(account)
    table.check({})
    assert [table.counter(name) for name in "abcde"] == [0.0, 0.0, 7.0, 7.0, 7.0]


def test_a_tenant_is_served_before_one_that_has_had_more():
    harness = Harness(max_num_seqs=1, max_num_batched_tokens=32)
    for number in range(6):
        ask(harness, f"a{number}", "ann", max_tokens=3)
    harness.run_step()
    for number in range(3):
        ask(harness, f"b{number}", "bob", max_tokens=3)
    harness.run()
    firsts = {label: harness.end(label).first_step for label in harness.begun}
    order = "".join(label[0] for label in sorted(firsts, key=firsts.get))
    assert order[:6].count("b") == 3
    harness.assert_all_is_back()


def test_first_come_first_served_knows_no_tenants():
    harness = Harness(max_num_seqs=1, max_num_batched_tokens=32, scheduling_policy="fcfs")
    for number in range(4):
        ask(harness, f"a{number}", "ann", max_tokens=3)
    ask(harness, "b", "bob", max_tokens=3)
    harness.run()
    firsts = {label: harness.end(label).first_step for label in harness.begun}
    assert sorted(firsts, key=firsts.get) == ["a0", "a1", "a2", "a3", "b"]


def test_a_priority_orders_the_requests_of_one_tenant_and_of_no_other():
    harness = Harness(max_num_seqs=1, max_num_batched_tokens=32)
    ask(harness, "running", "ann", max_tokens=3)
    harness.run_step()
    ask(harness, "later", "ann", max_tokens=3, priority=5)
    ask(harness, "soon", "ann", max_tokens=3)
    ask(harness, "first", "ann", max_tokens=3, priority=-5)
    ask(harness, "bob", "bob", max_tokens=3, priority=100)
    harness.run()
    firsts = {label: harness.end(label).first_step for label in harness.begun}
    order = sorted(firsts, key=firsts.get)
    assert [label for label in order if label != "bob"] == ["running", "first", "soon", "later"]
    assert order.index("bob") <= 2


def test_a_flood_leaves_room_in_the_queue_for_others():
    harness = Harness(max_num_seqs=1, max_num_batched_tokens=32, max_queued_requests=16)
    for number in range(30):
        ask(harness, f"a{number}", "ann", max_tokens=2)
    for number in range(2):
        ask(harness, f"b{number}", "bob", max_tokens=2)
    codes = {refused.code for refused in refusals(harness).values()}
    assert codes == {"queue_full"}
    assert {label[0] for label in refusals(harness)} == {"a"}
    harness.run()
    harness.assert_all_is_back()


def test_counts_are_by_tenant_and_made_up_names_share_one(monkeypatch):
    monkeypatch.setattr("weft.actors.scheduler.metrics.TENANTS_MAX", 2)
    harness = Harness(tenants={"ann": TenantLimits(max_concurrency=1), "*": TenantLimits()})
    for label, tenant in (("a", "ann"), ("b", "ann"), ("c", "bob"), ("d", "eve"), ("e", "zoe")):
        ask(harness, label, tenant, max_tokens=4, stop_token_ids=[])
    harness.run()
    metrics = harness.scheduler._metrics
    report = {
        m.tenant: m for m in metrics.report_tenants(harness.scheduler._payers.tenants.counter)
    }
    assert list(report) == ["ann", "bob", None]
    ann, others = report["ann"], report[None]
    assert (ann.requests, ann.rejected, ann.prompt_tokens, ann.output_tokens) == (1, 1, 6, 4)
    assert (sum(ann.queue_s), ann.counter) == (1, 6 + 2 * 4)
    assert (others.requests, others.output_tokens, others.counter) == (2, 8, 0.0)


def test_a_row_is_not_left_empty_for_hundreds_whose_adapters_must_wait():
    harness = Harness(max_loras_per_batch=1, max_num_seqs=4, pages=256, max_queued_requests=4096)
    ask(harness, "endless", "ann", adapter="own", max_tokens=400, stop_token_ids=[])
    while not harness.tokens:
        harness.run_step()
    for number in range(LOOK_AHEAD + 50):
        ask(harness, f"cold{number}", f"t{number}", adapter=f"a{number % 4}", max_tokens=1)
    for label, adapter in (("base", None), ("warm", "own")):
        ask(harness, label, "ann", adapter=adapter, max_tokens=3)
    for _ in range(8):
        harness.run_step()
    assert harness.end("base").output_tokens > 0
    assert harness.end("warm").output_tokens > 0
    harness.run()
    harness.assert_all_is_back()
