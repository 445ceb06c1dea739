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

SEEDS = range(int(os.environ.get("SEEDS", "12")))


def play(seed, model, folder, kills_max=4):
    """A drawn world whose runners die a few times, sometimes as soon as they are back."""
    flow = draw.play(seed, model, folder)
    rng = random.Random(f"kills {seed}")
    steps = 0
    for _ in range(rng.randint(1, kills_max)):
        steps += rng.choice((0, rng.randrange(4), rng.randrange(60)))
        group = rng.choice(list(flow.groups.values()))
        group.kills.append((steps, rng.randrange(len(group.roles))))
    return flow


def simple(label, model=None, *, prompt="x", after_ns=0, cancel_after_texts=None, **sampling):
    options = {"max_tokens": 9, "seed": 1} | sampling
    submit = Submit(label, model, prompt=prompt, sampling=Sampling(**options))
    return Plan(submit, after_ns, cancel_after_texts)


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_are_those_of_a_world_in_which_nobody_dies(seed, model, folder):
    flow = play(seed, model, folder)
    flow.run()
    flow.assert_all_are_answered()
    flow.assert_all_is_back()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1300))
def test_answers_are_those_of_a_world_in_which_nobody_dies_in_many_worlds(seed, model, folder):
    test_answers_are_those_of_a_world_in_which_nobody_dies(seed, model, folder)


@pytest.mark.slow
def test_the_drawn_worlds_lose_runners_in_the_middle_of_work(model, folder):
    """Or the tests above would show less than they seem to."""
    lost = fenced = resumed = 0
    for seed in range(30):
        flow = play(seed, model, folder)
        while not flow._is_over():
            flow.wait(lambda flow=flow: flow.scheduler._composer is None or flow._is_over())
            resumed += any(s.output_tokens for s in flow.scheduler._requests.sequences)
            flow.wait(lambda flow=flow: flow.scheduler._composer is not None or flow._is_over())
        lost += flow.scheduler._lives_lost
        for role in flow.schedulers:
            fenced += flow._mailboxes[role].endpoint.faults["unopened"]
    assert lost > 15
    assert resumed > 8
    assert fenced > 0  # frames of a former life, after the next one's first


def test_inspections_that_runners_take_with_them_are_answered(model, folder):
    for seed in range(3):
        flow = Flow(seed, model, folder, ranks=2)
        ann = flow.join("ann", [simple(f"r{i}", ADAPTERS[i], max_tokens=60) for i in range(4)])
        flow.wait(lambda flow=flow: flow.scheduler._in_flight.sent > 5)
        for _ in range(3):
            ann.inspect()
        flow.wait(lambda flow=flow: len(flow.scheduler._visits))
        flow.group.kill(seed % 2)
        flow.run()
        assert len(ann.reports) == 3
        ready = [report.sections["scheduler"]["runners_ready"] for report in ann.reports]
        assert 2 in ready
        flow.assert_all_are_answered()
        flow.assert_all_is_back()


def test_while_its_runners_are_away_weft_takes_requests_and_says_that_they_wait(model, folder):
    flow = Flow(1, model, folder, max_queued_requests=3)
    flow.wait(lambda: flow.scheduler._composer)
    flow.group.kill()
    flow.wait(lambda: flow.scheduler._composer is None)
    flow.world.pause("runner0", 5.0)
    ann = flow.join("ann", [simple(f"r{i}") for i in range(5)])
    flow.wait(lambda: len([heard for heard in ann.heard.values() if heard.refused]) == 2)
    assert "started again" in flow.tokenizer._away.reason
    assert flow.sections()["scheduler"]["waiting"] == 3
    flow.run()
    assert flow.tokenizer._away.reason is None
    flow.assert_all_are_answered()
    flow.assert_all_is_back()


def test_a_client_that_goes_while_runners_are_away_leaves_nothing(model, folder):
    flow = Flow(1, model, folder)
    ann = flow.join("ann", [simple(f"r{i}", ADAPTERS[i % 5], max_tokens=60) for i in range(9)])
    flow.wait(lambda: ann.messages > 20)
    flow.group.kill()
    flow.wait(lambda: flow.scheduler._composer is None)
    flow.world.pause("runner0", 1.0)
    flow.leave("ann")
    flow.wait(lambda: not flow.scheduler._requests)
    flow.run()
    flow.assert_all_is_back()


def test_a_drain_waits_for_runners_that_are_away(model, folder):
    flow = Flow(3, model, folder)
    ann = flow.join("ann", [simple(f"r{i}", max_tokens=40, seed=i) for i in range(12)])
    flow.wait(lambda: ann.messages > 5)
    flow.group.kill()
    flow.drain()
    flow.assert_all_are_answered()
    assert ann.is_over


@pytest.mark.parametrize("seed", range(4))
def test_of_two_replicas_each_may_lose_its_runners(seed, model, folder):
    flow = Flow(seed, model, folder, ranks=1 + seed % 2, replicas=2, pages=40)
    rng = random.Random(seed)
    for group in flow.groups.values():
        group.kills = [(rng.randrange(40), rng.randrange(len(group.roles))) for _ in range(2)]
        group.kills.sort()
    made = [
        simple(f"r{i}", rng.choice((None, *ADAPTERS)), seed=i, max_tokens=rng.choice((9, 40)))
        for i in range(30)
    ]
    flow.join("ann", made)
    flow.run()
    assert all(group.lives > 1 for group in flow.groups.values())
    flow.assert_all_are_answered()
    flow.assert_all_is_back()


def test_while_one_replicas_runners_are_away_requests_go_to_the_other(model, folder):
    flow = Flow(1, model, folder, replicas=2)
    flow.wait(flow.is_open)
    flow.wait(lambda: all(s._composer for s in flow.schedulers.values()))
    flow.groups["scheduler0"].kill()
    flow.wait(lambda: flow.actors["router"]._away.keys() == {0})
    flow.world.pause("runner0_0", 2.0)
    ann = flow.join("ann", [simple(f"r{i}", seed=i) for i in range(10)])
    flow.wait(lambda: ann.is_over)
    assert flow.schedulers["scheduler0"]._in_flight.sent == 0
    assert flow.tokenizer._away.reason is None
    flow.groups["scheduler1"].kill()
    flow.wait(lambda: flow.tokenizer._away)
    flow.run()
    assert flow.tokenizer._away.reason is None
    flow.assert_all_are_answered()
    flow.assert_all_is_back()


# ---- requests that kill their runners ------------------------------------------------------------


def poisoned(label, model=None, **sampling):
    return simple(label, model, **({"max_tokens": 30, "seed": POISON_SEED} | sampling))


def assert_given_up(heard):
    for end in heard.ends.values():
        assert end.reason == "error"
        assert f"died {DEATHS_MAX} times while they computed this request" in end.error
        assert end.output_tokens <= POISON_TOKENS


@pytest.mark.parametrize("seed", range(4))
def test_a_request_that_kills_its_runners_is_given_up_and_no_other(seed, model, folder):
    rng = random.Random(seed)
    flow = Flow(seed, model, folder, ranks=1 + seed % 2, max_num_seqs=rng.choice((2, 8)))
    made = [
        simple(
            f"r{i}",
            rng.choice((None, *ADAPTERS)),
            after_ns=rng.randrange(100_000_000),
            seed=i,
            max_tokens=rng.choice((3, 20, 60)),
            n=rng.choice((1, 1, 2)),
        )
        for i in range(20)
    ]
    bad = [poisoned(f"p{i}", rng.choice((None, *ADAPTERS)), n=1 + i) for i in range(2)]
    client = flow.join("ann", [*made, *bad])
    flow.run()
    for plan in made:
        flow.assert_answered(plan, client.heard[plan.submit.label])
    for plan in bad:
        assert_given_up(client.heard[plan.submit.label])
    assert len(flow.scheduler._suspects) == 0
    flow.assert_all_is_back()


def test_a_poisoned_request_by_itself_has_as_many_lives_as_it_is_allowed(model, folder):
    flow = Flow(1, model, folder)
    client = flow.join("ann", [poisoned("p")])
    flow.run()
    assert_given_up(client.heard["p"])
    assert flow.scheduler._lives_lost == DEATHS_MAX
    flow.assert_all_is_back()


def test_many_deaths_of_one_request_that_goes_on_each_time_are_not_held_against_it(model, folder):
    flow = Flow(1, model, folder)
    client = flow.join("ann", [simple("long", max_tokens=100)])
    flow.group.kills = [(8 * (number + 1), 0) for number in range(9)]
    flow.run()
    assert flow.scheduler._lives_lost == 9
    assert client.heard["long"].ends[0].reason == "length"
    flow.assert_all_are_answered()
    flow.assert_all_is_back()


def test_a_storm_of_deaths_loses_no_request_among_others(model, folder):
    flow = Flow(4, model, folder)
    client = flow.join("ann", [simple(f"r{i}", ADAPTERS[i % 5], seed=i) for i in range(16)])
    flow.wait(lambda: client.messages > 30)
    flow.group.kills = [(0, 0)] * 10
    flow.run()
    assert flow.group.lives == 11
    flow.assert_all_are_answered()
    flow.assert_all_is_back()
