"""That many adapters are made, counted and checked as they are said to be."""

import random
from collections import Counter

import pytest

from tests.actors.runner.engines import harness_of
from tests.bench.many import catalogue, exact, paper
from tests.bench.many.client import Answer, Question
from tests.sim.files import store_on_disk
from weft.runtime.actor import Turn
from weft.runtime.config import Config
from weft.runtime.messages import Acquire


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return catalogue.make("tiny", tmp_path_factory.mktemp("catalogue"), 5)


@pytest.fixture
def acquired(made, tmp_path):
    """What the store says of every adapter, by name."""
    adapters = {name: str(path) for name, path in made.adapters.items()}
    settings = Config(model=str(made.model), adapters=adapters)
    store = store_on_disk(settings, made.base, tmp_path)
    turn = Turn(0, lambda peer: 100)
    [(_, catalog)] = store.advance(turn)
    found = {}
    for entry in catalog.adapters:
        assert entry.refused is None
        store.receive("scheduler", Acquire(entry.digest), 0)
        [(_, found[entry.name])] = store.advance(turn)
    return found


def test_the_most_popular_adapter_is_drawn_in_proportion_to_its_place():
    drawn = Counter(catalogue.zipf(["a", "b", "c", "d"], 10_000, random.Random(0)))
    assert drawn["a"] == pytest.approx(10_000 / (1 + 1 / 2 + 1 / 3 + 1 / 4), rel=0.05)
    assert drawn["a"] / drawn["d"] == pytest.approx(4, rel=0.15)


def test_adapters_are_unlike_each_other_and_have_their_ranks(made, acquired):
    assert len({each.digest for each in acquired.values()}) == 5
    assert {name: each.rank for name, each in acquired.items()} == made.ranks


def test_what_adapters_take_on_paper_is_what_the_store_and_the_engine_say(made, acquired):
    engine = harness_of(made.model, {}, block_size=16, pages=8).engine
    per_page = engine.ready().page_granules
    assert engine._arena.memory[:, 0].nbytes == paper.page_bytes(made)
    for name, each in acquired.items():
        assert paper.device_pages(made, [name]) == -(-each.granules // per_page)
        assert each.size_bytes == pytest.approx(paper.file_bytes(made, [name]), rel=0.1)


def test_an_answer_with_another_token_counts_as_wrong(made, acquired, tmp_path):
    digest = acquired["a1"].digest
    harness = harness_of(made.model, {digest: acquired["a1"].path}, block_size=16)
    harness.generate("a", [7, 8, 9], adapter=digest, max_tokens=4, stop_token_ids=[])
    harness.run()
    right = harness.output("a")
    other = [*right[:3], right[3] ^ 1]
    question = Question("a1", [7, 8, 9], 4)
    asked = [(question, Answer(tokens, [], None)) for tokens in (right, other, right[:3])]
    assert exact.wrong(made, tmp_path / "again", asked) == 2
