"""Requests of a replica that loses its runners go on at another, in the simulator."""

import os
import random

import pytest

from tests.sim import draw
from tests.sim.flow import ADAPTERS, Flow
from tests.sim.shelves import NAMES, Shelves
from tests.sim.test_lost_runners import assert_given_up, poisoned, simple
from tests.sim.test_shelves import BYTES, PLACES, walk
from weft.actors.scheduler.suspects import DEATHS_MAX
from weft.runtime.config import TenantLimits
from weft.runtime.messages import Cancel, Sampling, Submit, UnloadAdapter
from weft.runtime.replicas import NUMBERS

SEEDS = range(int(os.environ.get("SEEDS", "10")))

# Runners that were killed take so long to come back: longer than anything else here.
AWAY_S = 20.0

TOKENS = 100


def play(seed, model, folder, kills_max=8):
    """A drawn world of several replicas whose runners die, now of this one and now of that."""
    drawn = draw.setting(seed)
    rng = random.Random(f"moves {seed}")
    for plans in drawn.plans.values():
        plans += [draw.plan(rng, f"more{number}") for number in range(rng.randint(0, 8))]
    flow = draw.world(seed, drawn, model, folder, replicas=rng.choice((2, 2, 3)))
    steps = 0
    for _ in range(rng.randint(1, kills_max)):
        steps += rng.choice((0, rng.randrange(4), rng.randrange(40)))
        group = rng.choice(list(flow.groups.values()))
        group.kills.append((steps, rng.randrange(len(group.roles))))
    return flow


def lose(flow, replica=0):
    """A replica's runners die, and stay away for long."""
    scheduler = flow.schedulers[f"scheduler{replica}"]
    flow.groups[f"scheduler{replica}"].kill()
    flow.wait(lambda: scheduler._composer is None)
    for role in flow.groups[f"scheduler{replica}"].roles:
        flow.world.pause(role, AWAY_S)
    return flow.world.now_ns


def have_left(flow):
    """Whether the first replica has handed over what it had."""
    return not flow.scheduler._requests and flow.scheduler._moves.are_told


def is_taken(flow):
    """Whether nothing is on its way from one replica to another."""
    router = flow.actors["router"]
    return router._asked is None and not router._ledger.moving


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_are_those_of_a_world_in_which_nobody_dies(seed, model, folder):
    flow = play(seed, model, folder)
    flow.run()
    flow.assert_all_are_answered()
    flow.assert_all_is_back()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1400))
def test_answers_are_those_of_a_world_in_which_nobody_dies_in_many_worlds(seed, model, folder):
    test_answers_are_those_of_a_world_in_which_nobody_dies(seed, model, folder)


@pytest.mark.slow
def test_the_drawn_worlds_move_requests_of_all_kinds(model, folder):
    """Or the tests above would show less than they seem to."""
    moved = 0
    for seed in range(40):
        flow = play(seed, model, folder)
        flow.run()
        moved += flow.actors["router"]._handed_over
    assert moved > 100


@pytest.mark.parametrize("seed", range(3))
def test_every_name_means_what_was_last_answered_while_requests_move(seed, model, folder):
    bounds = BYTES if seed % 2 else PLACES
    walk(seed, model, folder, 150, replicas=2 + seed % 2, clients=3, is_deadly=True, **bounds)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
def test_every_name_means_what_was_last_answered_while_many_requests_move(seed, model, folder):
    test_every_name_means_what_was_last_answered_while_requests_move(seed, model, folder)


def test_streams_of_a_lost_replica_go_on_at_the_other(model, folder):
    flow = Flow(1, model, folder, replicas=2, load_balance_method="round_robin", pages=400)
    made = [simple(f"r{i}", (None, *ADAPTERS)[i % 3], seed=i, max_tokens=60) for i in range(12)]
    client = flow.join("ann", made)
    flow.wait(lambda: client.messages > 40)
    lost_ns = lose(flow)
    flow.wait(lambda: client.is_over)
    assert flow.world.now_ns - lost_ns < AWAY_S * 1e9 / 10
    assert flow.scheduler._composer is None
    assert flow.actors["router"]._handed_over >= 4
    flow.assert_all_are_answered()
    flow.run()
    flow.assert_all_is_back()


def test_new_requests_go_to_whoever_is_there_and_weft_is_ready_but_degraded(model, folder):
    flow = Flow(1, model, folder, replicas=2)
    flow.wait(flow.is_open)
    flow.wait(lambda: all(scheduler._composer for scheduler in flow.schedulers.values()))
    lose(flow)
    client = flow.join("ann", [simple(f"r{i}", seed=i) for i in range(8)])
    flow.wait(lambda: client.is_over)
    away = flow.tokenizer._away
    assert away.reason is None
    assert "1 of 2 replicas" in away.degraded
    lose(flow, 1)
    flow.wait(lambda: flow.tokenizer._away.reason)
    late = flow.join("bob", [simple(f"r{i}", seed=i) for i in range(8)])
    flow.wait(lambda: all(heard.accepted for heard in late.heard.values()))
    assert flow.sections()["router"]["replicas_away"] == 2
    flow.run()
    assert (flow.tokenizer._away.reason, flow.tokenizer._away.degraded) == (None, None)
    flow.assert_all_are_answered()
    flow.assert_all_is_back()


def test_who_waits_goes_to_the_first_that_is_back(model, folder):
    flow = Flow(2, model, folder, replicas=2, load_balance_method="round_robin")
    flow.wait(lambda: all(scheduler._composer for scheduler in flow.schedulers.values()))
    lose(flow, 0)
    lose(flow, 1)
    client = flow.join("ann", [simple(f"r{i}", seed=i, max_tokens=30) for i in range(10)])
    flow.wait(lambda: all(heard.accepted for heard in client.heard.values()))
    flow.groups["scheduler1"].kill()  # and the next life of this one is there soon
    flow.wait(lambda: client.is_over)
    assert flow.scheduler._composer is None
    flow.run()
    flow.assert_all_are_answered()
    flow.assert_all_is_back()


def test_a_replica_that_comes_back_shares_what_waits(model, folder):
    flow = Flow(1, model, folder, replicas=2, max_num_seqs=2, pages=400)
    flow.wait(lambda: all(scheduler._composer for scheduler in flow.schedulers.values()))
    flow.groups["scheduler0"].kill()
    flow.wait(lambda: flow.scheduler._composer is None)
    client = flow.join("ann", [simple(f"r{i}", seed=i, max_tokens=60) for i in range(30)])
    flow.run()
    assert flow.actors["router"]._handed_over >= 8
    assert flow.sections()["scheduler0"]["steps_total"] > 100
    flow.assert_all_are_answered()
    flow.assert_all_is_back()
    assert client.is_over


def test_nobody_pays_twice_or_counts_twice(model, folder):
    limits = {"base": TenantLimits(max_concurrency=8, max_tokens_per_minute=10**6)}
    flow = Flow(
        5, model, folder, replicas=2, load_balance_method="round_robin", pages=400, tenants=limits
    )
    client = flow.join("ann", [simple(f"r{i}", seed=i, max_tokens=60) for i in range(8)])
    flow.wait(lambda: client.messages > 20)
    lose(flow)
    flow.wait(lambda: have_left(flow) and is_taken(flow))
    account = flow.actors["router"]._payers.tenants.get("base", 0)
    lives = [s._payers.tenants.get("base", 0).live for s in flow.schedulers.values()]
    assert lives == [0, account.live] == [0, 8]
    flow.wait(lambda: client.is_over)
    prompts = sum(len(flow.oracle._prompt(plan.submit)) for plan in client.plans)
    output = sum(heard.ends[0].output_tokens for heard in client.heard.values())
    served = sum(s._payers.tenants.counter("base") for s in flow.schedulers.values())
    assert served == prompts + 2 * output
    minted = flow.world.now_ns * 10**6 / 60e9
    spent = 10**6 - account.budget.tokens
    assert spent <= prompts + output <= spent + minted
    flow.run()
    flow.assert_all_is_back()


def test_a_client_that_goes_meanwhile_leaves_nothing(model, folder):
    flow, _ = about_to_move(model, folder)
    flow.world.pause("router", 0.3)
    flow.wait(lambda: have_left(flow))
    flow.leave("ann")
    flow.run()
    flow.assert_all_is_back()
    assert output_tokens(flow) < 8 * TOKENS / 4


def test_who_is_cancelled_on_its_way_ends_there(model, folder):
    flow, client = about_to_move(model, folder)
    flow.world.pause("router", 0.3)
    for plan in client.plans:
        plan.cancel_after_texts = 0
    flow.wait(lambda: have_left(flow))
    moved = [generate.label for generate in flow.scheduler._moves._elsewhere.values()]
    assert len(moved) > 2
    flow.run()
    assert {client.heard[label].ends[0].reason for label in moved} == {"cancelled"}
    flow.assert_all_are_answered()
    flow.assert_all_is_back()


@pytest.mark.parametrize("seed", range(4))
def test_what_was_said_elsewhere_is_heard_before(seed, model, folder):
    """A replica is lost with words that it could not say yet, for nobody read them."""
    flow = Flow(
        seed, model, folder, replicas=2, load_balance_method="round_robin", pages=400, window_max=4
    )
    ann = flow.join("ann", [simple(f"r{i}", seed=i, max_tokens=TOKENS) for i in range(8)])
    flow.wait(lambda: ann.messages > 20)
    flow.world.pause("detokenizer", 0.1)
    flow.join("bob", [simple(f"r{i}", seed=i, max_tokens=TOKENS) for i in range(16)])
    flow.wait(lambda: not flow.scheduler._outbox.is_empty)
    lose(flow)
    flow.run()
    flow.assert_all_are_answered()
    flow.assert_all_is_back()


def test_content_without_a_name_goes_with_who_moved(model, folder):
    """Its second replica had said that it needs it no more, before they came."""
    for seed in range(4):
        shelves = Shelves(seed, model, folder, replicas=2, clients=1, pages=400)
        flow, [walker] = shelves.flow, shelves.walkers
        digest = shelves.means[NAMES[0]]
        for number in range(2):  # of which each replica has one
            sampling = Sampling(max_tokens=TOKENS, seed=number)
            walker.say(Submit(f"r{number}", NAMES[0], prompt="x", sampling=sampling))
        flow.wait(lambda flow=flow: flow.scheduler._in_flight.sent > 9)
        walker.say(Cancel("r0" if owner(walker, "r1") == 0 else "r1"))
        flow.wait(lambda flow=flow: not flow.schedulers["scheduler1"]._requests)
        walker.say(UnloadAdapter("u", NAMES[0]))
        flow.wait(lambda flow=flow, digest=digest: holders(flow, digest) == {"scheduler0"})
        lose(flow)
        flow.wait(lambda walker=walker: walker.operations["u"])
        assert flow.actors["router"]._handed_over == 1
        for scheduler in flow.schedulers.values():
            composer = scheduler._composer
            assert composer is None or digest not in composer.slots.resident
        assert digest not in str(flow.files.written)
        reasons = {heard.ends[0].reason for heard in walker.requests.values()}
        assert "error" not in reasons
        flow.run()
        flow.assert_all_is_back()


def owner(walker, label):
    return walker.requests[label].accepted.first_sequence // NUMBERS


def holders(flow, digest):
    """Schedulers that may still have requests with content that has no name any more."""
    left = flow.store._naming.leaving._left.get(digest)
    return left.holders if left else None


@pytest.mark.parametrize("seed", range(6))
def test_a_drain_finishes_what_moves(seed, model, folder):
    flow = Flow(seed, model, folder, replicas=2, pages=400)
    ann = flow.join("ann", [simple(f"r{i}", max_tokens=40, seed=i) for i in range(12)])
    flow.wait(lambda: ann.messages > 5)
    lose(flow)
    flow.drain()
    flow.assert_all_are_answered()
    assert ann.is_over


def about_to_move(model, folder):
    """A world in which a replica has been asked for what it has."""
    flow = Flow(3, model, folder, replicas=2, load_balance_method="round_robin", pages=400)
    made = [simple(f"r{i}", seed=i, max_tokens=TOKENS, cancel_after_texts=10**9) for i in range(8)]
    client = flow.join("ann", made)
    flow.wait(lambda: client.messages > 20)
    lose(flow)
    flow.wait(lambda: flow.actors["router"]._asked == 0)
    return flow, client


def output_tokens(flow):
    reports = [s._metrics.report(frozenset()) for s in flow.schedulers.values()]
    return sum(adapter.output_tokens for report in reports for adapter in report)


# ---- requests that kill their runners ------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_request_that_kills_is_found_wherever_it_is(seed, model, folder):
    flow = Flow(seed, model, folder, replicas=2, load_balance_method="round_robin", pages=400)
    made = [simple(f"r{i}", ADAPTERS[i % 5], seed=i, max_tokens=60) for i in range(12)]
    bad = poisoned("bad", ADAPTERS[0])
    client = flow.join("ann", [*made, bad])
    flow.run()
    for plan in made:
        flow.assert_answered(plan, client.heard[plan.submit.label])
    assert_given_up(client.heard["bad"])
    lives = [scheduler._lives_lost for scheduler in flow.schedulers.values()]
    # One by which it came in doubt, one by which it was suspected, and those by itself.
    assert sum(lives) <= 2 + DEATHS_MAX
    assert min(lives) <= 1
    flow.assert_all_is_back()
