"""The virtual token counter's promises, held by all actors together under simulated time.

Service is counted here from the steps that the runner gets, not from the scheduler's own accounts:
the tenants use different models, so a row's slot says whose it is.
"""

import random
from functools import cache

import pytest

from tests.sim.client import Plan
from tests.sim.flow import Flow
from weft.actors.scheduler.fair import INPUT_COST, OUTPUT_COST, service_gap_max
from weft.actors.scheduler.flight import STEPS_IN_FLIGHT
from weft.runtime.config import Limits, TenantLimits
from weft.runtime.messages import Sampling, Submit

ROWS = 4
PROMPT_MAX = 40
CONTEXT_MAX = 60
WEIGHTS = {"big": 1.0, "small": 1.0}


class Meter:
    """What each tenant is given, step by step: one uses an adapter, one the base."""

    def __init__(self, flow, *, adapter, base):
        self.service = {adapter: 0.0, base: 0.0}
        self.history = []  # (service by tenant, rows in use, tokens) after each step
        self._adapter, self._base = adapter, base
        self._rows = {}  # row -> tenant
        self._decoding = set()
        self._execute = flow.engine.execute
        flow.engine.execute = self._count

    def gap(self, weights):
        """By how much more the adapter's tenant has been given, after each step."""
        one, other = self._adapter, self._base
        return [
            given[one] / weights[one] - given[other] / weights[other] for given, *_ in self.history
        ]

    def _count(self, step):
        for row in step.leaves:
            del self._rows[row]
            self._decoding.discard(row)
        for join in step.joins:
            tenant = self._adapter if join.adapters else self._base
            self._rows[join.row] = tenant
            self.service[tenant] += INPUT_COST * (join.prompt_tokens - join.position)
        tokens = len(self._decoding) + sum(len(chunk.tokens) for chunk in step.chunks)
        self._decoding |= {chunk.row for chunk in step.chunks if chunk.is_last}
        for row in self._decoding:
            self.service[self._rows[row]] += OUTPUT_COST
        self.history.append((dict(self.service), len(self._rows), tokens))
        return self._execute(step)


def request(rng, label, *, tenant, model=None, longest):
    prompt = [rng.randrange(3, 400) for _ in range(rng.randint(longest // 2, longest))]
    sampling = Sampling(max_tokens=rng.randint(longest // 3, longest // 2), seed=1)
    return Plan(Submit(label, model, None, prompt, sampling, tenant=tenant), 0)


def flood(seed, model, folder, policy, *, weights=WEIGHTS):
    """Two tenants that always wait; one asks four times as often, and for several times as much.

    Returns the flow, its meter, and the first and the last step in which both waited.
    """
    rng = random.Random(seed)
    flow = Flow(
        seed, model, folder, pages=200, scheduling_policy=policy, max_num_seqs=ROWS,
        enable_prefix_caching=False, max_queued_requests=4000,
        tenants={name: TenantLimits(weight=weight) for name, weight in weights.items()},
    )  # fmt: skip
    meter = Meter(flow, adapter="big", base="small")
    big = [request(rng, f"b{i}", tenant="big", model="a1", longest=PROMPT_MAX) for i in range(480)]
    small = [request(rng, f"s{i}", tenant="small", longest=12) for i in range(480)]
    for number, plan in enumerate(big):
        plan.after_ns = number * 10_000
    for number, plan in enumerate(small):
        plan.after_ns = number * 40_000
    flow.join("big", big)
    flow.join("small", small)
    flow.wait(lambda: both_wait(flow, 20))
    began = len(meter.history) + STEPS_IN_FLIGHT  # those were composed before
    flow.wait(lambda: not both_wait(flow, 1))
    return flow, meter, began, len(meter.history)


def both_wait(flow, count):
    composer = flow.scheduler._composer
    return composer is not None and all(
        composer.waiting.count(tenant) >= count for tenant in WEIGHTS
    )


def spread(gaps):
    """By how much two tenants' service differs in the span of time in which it differs most."""
    return max(gaps) - min(gaps)


BOUND = service_gap_max(input_tokens_max=PROMPT_MAX, batch_tokens_max=ROWS * CONTEXT_MAX)


@pytest.fixture(scope="module")
def flooded(model, folder):
    """A function that returns a flood of equal tenants, which several tests look at."""
    return cache(lambda policy, seed=0: flood(seed, model, folder, policy))


@pytest.mark.parametrize("seed", range(3))
def test_two_tenants_that_always_wait_get_the_same_within_the_papers_bound(seed, flooded):
    _, meter, began, ended = flooded("vtc", seed)
    assert sum(meter.history[ended - 1][0].values()) > 6 * BOUND, "too short a run to tell"
    assert spread(meter.gap(WEIGHTS)[began:ended]) <= BOUND


def test_first_come_first_served_gives_most_to_who_asks_most(flooded):
    """The same load, without which the test above would show little."""
    _, meter, began, ended = flooded("fcfs")
    assert spread(meter.gap(WEIGHTS)[began:ended]) > 10 * BOUND


def test_weights_divide_what_there_is_within_the_bound(model, folder):
    weights = {"big": 1.0, "small": 3.0}
    _, meter, began, ended = flood(0, model, folder, "vtc", weights=weights)
    assert spread(meter.gap(weights)[began:ended]) <= BOUND
    first, last = (meter.history[step][0] for step in (began, ended - 1))
    big, small = (last[tenant] - first[tenant] for tenant in ("big", "small"))
    assert 2.5 < small / big < 3.5


@pytest.mark.parametrize("policy", ["vtc", "fcfs"])
def test_no_row_is_left_empty_while_somebody_waits(policy, flooded):
    """Unless the step has as many tokens as it may have."""
    flow, meter, began, ended = flooded(policy)
    tokens_max = flow.config.max_num_batched_tokens
    for _, rows, tokens in meter.history[began:ended]:
        assert rows == ROWS or tokens == tokens_max


def test_turns_cost_no_throughput(flooded):
    """Steps that all of the same requests take, whoever's turn it is."""
    steps = {}
    for policy in ("vtc", "fcfs"):
        flow, meter, _, _ = flooded(policy)
        flow.run()
        flow.assert_all_is_back()
        steps[policy] = len(meter.history)
    assert steps["vtc"] < 1.03 * steps["fcfs"]


@pytest.mark.parametrize("policy", ["vtc", "fcfs"])
def test_who_asks_now_and_then_waits_for_a_row_and_not_for_a_flood(policy, model, folder):
    rng = random.Random(0)
    flow = Flow(
        0, model, folder, pages=200, scheduling_policy=policy, max_num_seqs=ROWS,
        max_queued_requests=4000,
    )  # fmt: skip
    flow.join(
        "big",
        [request(rng, f"b{i}", tenant="big", model="a1", longest=PROMPT_MAX) for i in range(200)],
    )
    light = [request(rng, f"l{i}", tenant="light", longest=12) for i in range(5)]
    for number, plan in enumerate(light):
        plan.after_ns = 50_000_000 + number * 100_000_000
    flow.join("light", light)
    waits = {}
    admit = flow.scheduler._note_admissions

    def noted(composed, now_ns):
        admit(composed, now_ns)
        for sequence in composed.admitted:
            request_of = sequence.request
            if request_of.tenant.name == "light":
                steps = composed.step.step - arrived[request_of.generate.label]
                waits[request_of.generate.label] = steps

    arrived = {}
    accept = flow.scheduler._accept

    def accepted(generate, now_ns):
        arrived[generate.label] = flow.scheduler._in_flight.sent
        return accept(generate, now_ns)

    flow.scheduler._note_admissions, flow.scheduler._accept = noted, accepted
    flow.run()
    flow.assert_all_are_answered()
    # The longest answer of a row is half its longest prompt.
    few = PROMPT_MAX // 2 + 4
    assert (max(waits.values()) <= few) == (policy == "vtc"), waits


def test_limits_refuse_at_the_door_and_hold_nothing(model, folder):
    flow = Flow(
        0, model, folder,
        tenants={"ann": TenantLimits(max_concurrency=3)},
        adapter_limits={"a0": Limits(max_concurrency=2)},
    )  # fmt: skip
    rng = random.Random(0)
    plans = [request(rng, f"r{i}", tenant="ann", model="a0", longest=20) for i in range(12)]
    ann = flow.join("ann", plans)
    bob = flow.join("bob", [request(rng, f"r{i}", tenant="bob", longest=20) for i in range(6)])
    flow.run()
    refused = [heard.refused for heard in ann.heard.values() if heard.refused is not None]
    assert {refusal.code for refusal in refused} == {"rate_limit_exceeded"}
    assert 0 < len(refused) < 12
    assert not any(heard.refused for heard in bob.heard.values())
    flow.assert_all_is_back()
