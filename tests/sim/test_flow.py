"""The whole flow under a seeded clock and network. SEEDS=500 in the environment tries more."""

import os
import random

import pytest

from tests.actors import made_tokenizers
from tests.sim.flow import ADAPTERS, Flow, Plan
from weft.actors.tokenizer.text_model import TextModel
from weft.runtime.config import Config
from weft.runtime.messages import Sampling, Submit

SEEDS = range(int(os.environ.get("SEEDS", "25")))
MODELS = (None, "base", *ADAPTERS, "alias")
PROMPTS = (
    "The quick brown fox jumps over the lazy dog.",
    "The quick brown fox jumps over the lazy cat.",
    "def weave(warp, weft):",
    [7, 8, 9],
    list(range(20, 60)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made_tokenizers.save("byte_level", tmp_path_factory.mktemp("sim"))


@pytest.fixture(scope="module")
def model(folder):
    return TextModel.load(Config(model=str(folder)))


def plans(rng, name, count, **always):
    """Requests of all kinds, within a virtual second."""
    made = []
    for number in range(count):
        options = {
            "max_tokens": rng.choice([1, 2, 7, 30]),
            "seed": rng.randrange(3),
            "n": rng.choice([1, 1, 1, 3]),
            "stop": rng.choice([[], [], ["e"], [" t", "x"]]),
        }
        submit = Submit(
            f"{name}-{number}",
            rng.choice(MODELS),
            prompt=rng.choice(PROMPTS),
            sampling=Sampling(**(options | always)),
        )
        cancel = rng.randrange(4) if rng.random() < 0.15 else None
        made.append(Plan(submit, rng.randrange(1_000_000_000), cancel))
    return made


def assert_answered(flow, client, made):
    """Every request has its answer; those cancelled early may not have been accepted."""
    for plan in made:
        heard = client.heard[plan.submit.label]
        if heard.refused is None:
            flow.assert_answered(plan, heard)
        else:
            assert heard.refused.code == "cancelled"
            assert plan.cancel_after_texts is not None


@pytest.mark.parametrize("seed", SEEDS)
def test_every_request_gets_its_answer_and_leaves_nothing(seed, model, folder):
    rng = random.Random(seed)
    # Few enough pages that sequences preempt each other, few enough slots that adapters queue.
    flow = Flow(seed, model, folder, pages=rng.choice([40, 60, 200]))
    made = {name: plans(rng, name, 15) for name in ("ann", "bob")}
    clients = {name: flow.join(name, made[name]) for name in made}
    flow.run()
    for name, client in clients.items():
        assert_answered(flow, client, made[name])
    flow.assert_all_is_back()


@pytest.mark.parametrize("seed", SEEDS[:10])
def test_a_client_that_vanishes_takes_nobody_with_it(seed, model, folder):
    rng = random.Random(seed)
    flow = Flow(seed, model, folder, pages=60)
    made = plans(rng, "ann", 15)
    ann = flow.join("ann", made)
    ghost = flow.join("ghost", plans(rng, "ghost", 15, max_tokens=40))
    flow.world.run_until(lambda: sum(heard.messages for heard in ghost.heard.values()) > 5)
    flow.leave("ghost")
    flow.run()
    assert_answered(flow, ann, made)
    flow.world.run_until(lambda: not flow.scheduler._sequences)
    flow.assert_all_is_back()


def test_a_seed_plays_the_same_way_twice(model, folder):
    digests = set()
    for _ in range(2):
        flow = Flow(3, model, folder)
        flow.join("ann", plans(random.Random(3), "ann", 10))
        flow.run()
        digests.add(flow.world.digest)
    assert len(digests) == 1


def test_a_full_queue_refuses_and_serves_what_it_took(model, folder):
    flow = Flow(1, model, folder, max_queued_requests=4, max_num_seqs=2)
    made = [
        Plan(Submit(f"r{number}", prompt="x", sampling=Sampling(max_tokens=9, seed=number)), 0)
        for number in range(60)
    ]
    client = flow.join("ann", made)
    flow.run()
    refused = [heard.refused for heard in client.heard.values() if heard.refused]
    assert 0 < len(refused) < 60
    assert {refusal.code for refusal in refused} == {"queue_full"}
    assert all(refusal.retry_after_s > 0 for refusal in refused)
    for plan in made:
        if client.heard[plan.submit.label].refused is None:
            flow.assert_answered(plan, client.heard[plan.submit.label])
    flow.assert_all_is_back()


def test_a_drain_finishes_what_was_accepted_and_refuses_the_rest(model, folder):
    rng = random.Random(5)
    flow = Flow(5, model, folder)
    made = plans(rng, "ann", 40)
    client = flow.join("ann", made)
    flow.world.run_until(lambda: sum(heard.messages for heard in client.heard.values()) > 20)
    for role in ("tokenizer", "scheduler", "detokenizer", "runner0", "adapters"):
        flow.actors[role].drain()
    flow.run()
    codes = set()
    for plan in made:
        heard = client.heard[plan.submit.label]
        if heard.refused is None:
            flow.assert_answered(plan, heard)
        else:
            codes.add(heard.refused.code)
    assert "draining" in codes
    flow.assert_all_is_back()


def test_one_adapter_under_two_names_shares_its_pages_and_two_adapters_never(model, folder):
    prompt = list(range(20, 60))

    def ask(flow, name):
        submit = Submit(name, name, prompt=prompt, sampling=Sampling(max_tokens=2, seed=1))
        client = flow.join(f"client-{name}", [Plan(submit, 0)])
        flow.run()
        flow.assert_answered(Plan(submit, 0), client.heard[name])
        return client.heard[name].ends[0].cached_tokens

    flow = Flow(1, model, folder)
    assert ask(flow, "a0") == 0
    assert ask(flow, "alias") > 0
    assert ask(flow, "a1") == 0
    assert ask(flow, "base") == 0
    assert flow.engine.distinct_adapters_max == 1


def test_an_adapter_that_changed_on_disk_fails_its_requests_alone(model, folder):
    flow = Flow(2, model, folder)
    flow.files.folders["/a2"] = {}
    made = [
        Plan(Submit(name, name, prompt="x", sampling=Sampling(max_tokens=5, seed=1)), 0)
        for name in ADAPTERS
    ]
    client = flow.join("ann", made)
    flow.run()
    for plan in made:
        heard = client.heard[plan.submit.label]
        if plan.submit.model == "a2":
            assert heard.ends[0].reason == "error"
            assert "a2" in heard.ends[0].error or "adapter" in heard.ends[0].error
        else:
            flow.assert_answered(plan, heard)
    flow.assert_all_is_back()
