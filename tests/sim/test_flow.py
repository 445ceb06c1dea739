"""The whole flow under a seeded clock and network. SEEDS=500 in the environment tries more."""

import os
import random

import pytest

from tests.sim import draw
from tests.sim.client import Plan
from tests.sim.flow import ADAPTERS, Flow
from weft.actors.detokenizer.actor import STALLED_ERROR
from weft.runtime.messages import Sampling, Submit

SEEDS = range(int(os.environ.get("SEEDS", "50")))


def plans(rng, count):
    return [draw.plan(rng, f"r{number}") for number in range(count)]


def simple(label, model=None, *, prompt="x", after_ns=0, **sampling):
    options = {"max_tokens": 9, "seed": 1} | sampling
    return Plan(Submit(label, model, prompt=prompt, sampling=Sampling(**options)), after_ns)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_request_gets_its_answer_and_leaves_nothing(seed, model, folder):
    flow = draw.play(seed, model, folder)
    flow.run()
    flow.assert_all_are_answered()
    flow.assert_all_is_back()


@pytest.mark.parametrize("seed", SEEDS[::2])
def test_a_drain_at_any_moment_finishes_what_was_let_in(seed, model, folder):
    flow = draw.play(seed, model, folder)
    flow.wait(flow.is_open)
    # Often while a request is between the tokenizer and the scheduler.
    generated = random.Random(seed).randrange(8)
    late_ns = flow.world.now_ns + 400_000_000
    flow.wait(lambda: flow.tokenizer._assembly.count >= generated or flow.world.now_ns > late_ns)
    flow.drain()
    flow.assert_all_are_answered(is_drained=True)
    # Who has the last word on a request.
    rejections = flow.actors.get("router", flow.scheduler)._metrics.rejections
    assert rejections == 0 or flow.config.max_queued_requests < 100
    requests = sum(
        counters.requests
        for scheduler in flow.schedulers.values()
        for counters in scheduler._metrics.report_tenants(lambda name: 0.0)
    )
    assert requests + rejections == flow.tokenizer._assembly.count
    for actor in flow.actors.values():
        assert actor.is_idle
        actor.check()


def test_the_drawn_worlds_run_short_of_everything(model, folder):
    """Or the tests above would show less than they seem to."""
    short = {"preemptions_total", "adapter_evictions_total", "rejected_total"}
    seen = {"evictions_total": 0.0, "stops_found_total": 0.0} | dict.fromkeys(short, 0.0)
    row_adapters_max = 0
    for seed in range(12):
        flow = draw.play(seed, model, folder)
        flow.run()
        sections = flow.sections()
        for counters in sections.values():
            for name in seen.keys() & counters.keys():
                seen[name] += counters[name]
        row_adapters_max = max(row_adapters_max, flow.engine.row_adapters_max)
    assert all(seen.values()), seen
    assert row_adapters_max > 1


def test_a_seed_plays_the_same_way_twice(model, folder):
    digests = []
    for seed in (3, 3, 4):
        flow = draw.play(seed, model, folder)
        flow.run()
        digests.append(flow.world.digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_cancelled_request_ends_at_once_whether_it_waits_or_runs(model, folder):
    flow = Flow(1, model, folder, max_num_seqs=2)
    made = [simple(f"r{i}", max_tokens=100, seed=i, n=2) for i in range(4)]
    for plan, texts in zip(made, (3, 0, None, 0), strict=True):
        plan.cancel_after_texts = texts
    client = flow.join("ann", made)
    flow.run()
    flow.assert_all_are_answered()
    flow.assert_all_is_back()
    for plan in made:
        heard = client.heard[plan.submit.label]
        reasons = {end.reason for end in heard.ends.values()}
        assert heard.refused is not None or ("cancelled" in reasons) == plan.is_cancelled
    assert max(end.output_tokens for end in client.heard["r0"].ends.values()) < 30


def test_a_client_that_vanishes_takes_nobody_with_it(model, folder):
    rng = random.Random(1)
    flow = Flow(1, model, folder, pages=60)
    flow.join("ann", plans(rng, 15))
    ghost = flow.join("ghost", [simple(f"r{i}", max_tokens=60, seed=i) for i in range(15)])
    flow.wait(lambda: ghost.messages > 20)
    assert not ghost.is_over
    flow.leave("ghost")
    flow.run()
    flow.assert_all_are_answered()
    flow.assert_all_is_back()


def test_a_client_that_stops_reading_holds_up_nobody_and_loses_nothing(model, folder):
    flow = Flow(1, model, folder, window_max=8)
    frozen = flow.join("frozen", [simple(f"r{i}", max_tokens=60, seed=i) for i in range(4)])
    flow.wait(lambda: frozen.messages > 5)
    paused_ns = flow.world.now_ns
    flow.world.pause("frozen", 600.0)
    ann = flow.join("ann", [simple(f"r{i}", max_tokens=20, seed=i) for i in range(8)])
    flow.wait(lambda: ann.is_over)
    assert flow.world.now_ns < paused_ns + 5e9
    flow.wait(lambda: flow.detokenizer.is_idle)
    assert flow.world.now_ns < paused_ns + 100e9
    flow.run()
    assert flow.world.now_ns > paused_ns + 600e9
    flow.assert_all_are_answered()
    flow.assert_all_is_back()


def test_what_runs_for_a_client_that_stops_reading_is_ended_and_it_hears_of_it(model, folder):
    flow = Flow(1, model, folder, window_max=4)
    frozen = flow.join("frozen", [simple("r", max_tokens=100, n=3)])
    flow.wait(lambda: frozen.messages > 5)
    flow.world.pause("frozen", 600.0)
    flow.wait(lambda: flow.detokenizer._outboxes["frozen"].stalled_since_ns)
    flow.world.pause("runner0", 90.0)
    flow.wait(lambda: not flow.scheduler._requests)
    flow.run()
    ends = frozen.heard["r"].ends.values()
    assert {(end.reason, end.error) for end in ends} == {("error", STALLED_ERROR)}
    del flow.clients["frozen"]
    flow.assert_all_is_back()


def test_a_full_queue_refuses_and_serves_what_it_took(model, folder):
    flow = Flow(1, model, folder, max_queued_requests=4, max_num_seqs=2)
    client = flow.join("ann", [simple(f"r{number}", seed=number) for number in range(60)])
    flow.run()
    refused = [heard.refused for heard in client.heard.values() if heard.refused]
    assert 0 < len(refused) < 60
    assert {refusal.code for refusal in refused} == {"queue_full"}
    assert all(refusal.retry_after_s > 0 for refusal in refused)
    flow.assert_all_are_answered()
    flow.assert_all_is_back()


def test_a_draining_system_refuses_what_is_new(model, folder):
    flow = Flow(5, model, folder)
    old = [simple(f"r{i}", max_tokens=40, seed=i) for i in range(20)]
    client = flow.join("ann", old)
    flow.wait(lambda: all(heard.accepted for heard in client.heard.values()))
    flow.tokenizer.drain()
    late = flow.join("late", [simple("late")])
    flow.wait(lambda: late.is_over)
    refused = late.heard["late"].refused
    assert (refused.code, refused.retry_after_s) == ("draining", 5.0)
    assert not client.is_over
    del flow.clients["late"]
    flow.drain()
    flow.assert_all_are_answered()
    assert client.is_over


def test_one_adapter_under_two_names_shares_its_pages_and_two_adapters_never(model, folder):
    prompt = list(range(20, 60))

    def ask(flow, name):
        plan = simple(name, name, prompt=prompt, max_tokens=2)
        client = flow.join(f"client-{name}", [plan])
        flow.run()
        flow.assert_answered(plan, client.heard[name])
        return client.heard[name].ends[0].cached_tokens

    flow = Flow(1, model, folder)
    assert ask(flow, "a0") == 0
    assert ask(flow, "alias") > 0
    assert ask(flow, "a1") == 0
    assert ask(flow, "base") == 0
    assert flow.engine.distinct_adapters_max == 1


def test_adapters_and_the_base_share_batches(model, folder):
    flow = Flow(1, model, folder, max_loras_per_batch=3, max_loaded_loras=5)
    names = (*ADAPTERS, "base") * 3
    flow.join("ann", [simple(f"r{i}", name, seed=i) for i, name in enumerate(names)])
    flow.run()
    flow.assert_all_are_answered()
    assert flow.engine.distinct_adapters_max == 3


@pytest.mark.parametrize("seed", range(6))
def test_many_adapters_come_and_go_in_little_memory(seed, model, folder):
    """Thirty adapters, of which about eight fit at once, and now and then a long answer."""
    rng = random.Random(seed)
    lora_ranks = {f"a{number}": rng.choice((1, 8, 16, 33, 64)) for number in range(30)}
    flow = Flow(
        seed, model, folder, pages=40, lora_ranks=lora_ranks,
        max_loras_per_batch=rng.choice((1, 4, 8)), max_loaded_loras=rng.choice((8, 12, 30)),
        lora_eviction_policy=rng.choice(("lru", "fifo")),
    )  # fmt: skip
    names = ["base", *lora_ranks]
    for client in ("ann", "bob"):
        made = [
            simple(
                f"r{number}",
                rng.choice((*names, *names[:5], *names[:5])),
                after_ns=rng.randrange(500_000_000),
                max_tokens=rng.choice((1, 5, 9, 70)),
                seed=number,
            )
            for number in range(50)
        ]
        flow.join(client, made)
    flow.run()
    flow.assert_all_are_answered()
    flow.assert_all_is_back()
    assert flow.sections()["scheduler"]["adapter_evictions_total"] > 20


@pytest.mark.parametrize("is_full", [False, True], ids=["changed", "disk full"])
def test_an_adapter_that_cannot_be_loaded_fails_its_requests_alone(model, folder, is_full):
    flow = Flow(2, model, folder)
    if is_full:
        flow.files.is_full = True
    made = [simple(name, name) for name in (*ADAPTERS, "gone", "base")]
    client = flow.join("ann", made)
    flow.run()
    for plan in made:
        heard = client.heard[plan.submit.label]
        if plan.submit.model == "gone" or (is_full and plan.submit.model != "base"):
            assert heard.ends[0].reason == "error"
            assert "the adapter cannot be loaded" in heard.ends[0].error
        else:
            flow.assert_answered(plan, heard)
    flow.assert_all_is_back()


def test_a_label_in_use_is_refused_to_its_client_alone(model, folder):
    flow = Flow(3, model, folder)
    for name in ("ann", "bob"):
        flow.join(name, [simple("same", max_tokens=20)])
    flow.run()
    flow.assert_all_are_answered()
    flow.assert_all_is_back()
