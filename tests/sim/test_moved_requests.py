"""Requests of a replica that loses its runners go on at another, in the simulator."""

import os
import random

import pytest

from tests.sim import draw

SEEDS = range(int(os.environ.get("SEEDS", "12")))


def play(seed, model, folder, kills_max=6):
    """A drawn world of several replicas whose runners die, now of this one and now of that."""
    drawn = draw.setting(seed)
    rng = random.Random(f"moves {seed}")
    flow = draw.world(seed, drawn, model, folder, replicas=rng.choice((2, 2, 3)))
    steps = 0
    for _ in range(rng.randint(1, kills_max)):
        steps += rng.choice((0, rng.randrange(4), rng.randrange(40)))
        group = rng.choice(list(flow.groups.values()))
        group.kills.append((steps, rng.randrange(len(group.roles))))
    return flow


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_are_those_of_a_world_in_which_nobody_dies(seed, model, folder):
    flow = play(seed, model, folder)
    flow.run()
    flow.assert_all_are_answered()
    flow.assert_all_is_back()
