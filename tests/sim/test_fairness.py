"""The virtual token counter's promises, held by all actors together under simulated time.

Service is counted here from the steps that the runner gets, not from the scheduler's own accounts:
the tenants use different models, so a row's slot says whose it is.
"""

import random

import pytest

from tests.sim.client import Plan
from tests.sim.flow import Flow
from weft.actors.scheduler.fair import INPUT_COST, OUTPUT_COST, service_gap_max
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
        return [given[one] / weights[one] - given[other] / weights[other] for given, *_ in self.history]

    def _count(self, step):
        for row in step.leaves:
            del self._rows[row]
            self._decoding.discard(row)
        for join in step.joins:
            tenant = self._base if join.adapter_slot is None else self._adapter
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
    sampling = Sampling(max_tokens=rng.randint(longest // 3, longest // 2), seed=1, ignore_eos=True)
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
        plan.after_ns = number * 500_000
    for number, plan in enumerate(small):
        plan.after_ns = number * 2_000_000
    flow.join("big", big)
    flow.join("small", small)
    flow.wait(lambda: both_wait(flow))
    began = len(meter.history)
    flow.wait(lambda: not both_wait(flow))
    return flow, meter, began, len(meter.history)


def both_wait(flow):
    composer = flow.scheduler._composer
    return composer is not None and composer.waiting.tenants == {"big", "small"}


def spread(gaps):
    """By how much two tenants' service differs in the span of time in which it differs most."""
    return max(gaps) - min(gaps)


BOUND = service_gap_max(input_tokens_max=PROMPT_MAX, batch_tokens_max=ROWS * CONTEXT_MAX)


@pytest.mark.parametrize("seed", range(3))
def test_two_tenants_that_always_wait_get_the_same_within_the_papers_bound(seed, model, folder):
    _, meter, began, ended = flood(seed, model, folder, "vtc")
    assert sum(meter.history[ended - 1][0].values()) > 6 * BOUND, "too short a run to tell"
    assert spread(meter.gap(WEIGHTS)[began:ended]) <= BOUND
