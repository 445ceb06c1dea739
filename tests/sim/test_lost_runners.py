"""The whole flow while its runners die, at any moment, again and again."""

import os
import random

import pytest

from tests.sim import draw
from tests.sim.client import Plan
from tests.sim.flow import ADAPTERS, Flow
from tests.sim.runner_group import POISON_SEED, POISON_TOKENS
from weft.actors.scheduler.suspects import DEATHS_MAX
from weft.runtime.messages import Sampling, Submit

SEEDS = range(int(os.environ.get("SEEDS", "40")))


def play(seed, model, folder, kills_max=4):
    """A drawn world whose runners die a few times, sometimes twice in a moment.

    Three times would be the fault of a request that happens to be alone.
    """
    flow = draw.play(seed, model, folder)
    rng = random.Random(f"kills {seed}")
    steps = 0
    for number in range(rng.randint(1, kills_max)):
        steps += rng.choice((0, rng.randrange(4))) if number % 2 else rng.randrange(4, 80)
        flow.group.kills.append((steps, rng.randrange(len(flow.runners))))
    return flow


def simple(label, model=None, *, prompt="x", after_ns=0, **sampling):
    options = {"max_tokens": 9, "seed": 1, "ignore_eos": True} | sampling
    return Plan(Submit(label, model, prompt=prompt, sampling=Sampling(**options)), after_ns)


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_are_those_of_a_world_in_which_nobody_dies(seed, model, folder):
    flow = play(seed, model, folder)
    flow.run()
    flow.assert_all_are_answered()
    flow.assert_all_is_back()


def test_the_drawn_worlds_lose_runners_in_the_middle_of_work(model, folder):
    """Or the test above would show less than it seems to."""
    lost, in_doubt = 0, 0
    for seed in range(12):
        flow = play(seed, model, folder)
        while not flow._is_over():
            flow.wait(lambda flow=flow: flow.scheduler._composer is None or flow._is_over())
            in_doubt += len(flow.scheduler._suspects)
            flow.wait(lambda flow=flow: flow.scheduler._composer is not None or flow._is_over())
        lost += flow.sections()["scheduler"]["runners_lost_total"]
    assert lost > 12
    assert in_doubt > 12
