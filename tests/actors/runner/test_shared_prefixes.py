"""Which requests may read what another computed: the adapter's content decides, not its name."""

import shutil

import pytest

from tests.actors.runner.engines import harness_of
from tests.checkpoints import greedy, peft_model, save_adapters, save_model
from tests.sim.files import store_on_disk
from weft.actors.adapters.base import BaseShapes
from weft.runtime.actor import Turn
from weft.runtime.config import Config
from weft.runtime.messages import Acquire

PROMPT = list(range(3, 40))
SHARED = 36  # whole pages of 4 before the last token


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model; adapters by name, two of them equal; digests by name; files by digest."""
    folder = tmp_path_factory.mktemp("run")
    model = save_model(folder / "model", "qwen2.5-tied")
    adapters = save_adapters(folder, model, 2)
    adapters["twin"] = shutil.copytree(adapters["adapter0"], folder / "copy")
    named = {name: str(path) for name, path in adapters.items()}
    settings = Config(model=str(folder / "model"), adapters=named)
    store = store_on_disk(settings, BaseShapes.load(settings.model), folder)
    turn = Turn(0, lambda peer: 100)
    [(_, catalog)] = store.advance(turn)
    digests = {entry.name: entry.digest for entry in catalog.adapters}
    paths = {}
    for digest in set(digests.values()):
        store.receive("scheduler", Acquire(digest), 0)
        [(_, acquired)] = store.advance(turn)
        paths[digest] = acquired.path
    return folder / "model", adapters, digests, paths


def ask(harness, digests, label, name):
    harness.generate(
        label, PROMPT, adapter=name and digests[name], max_tokens=10, stop_token_ids=[]
    )
    harness.run()
    return harness.end(label).cached_tokens


def test_equal_content_under_two_names_shares_and_nothing_else_does(run):
    model, adapters, digests, paths = run
    harness = harness_of(model, paths)
    assert ask(harness, digests, "a", "adapter0") == 0
    assert ask(harness, digests, "b", "adapter1") == 0
    assert ask(harness, digests, "c", None) == 0
    assert ask(harness, digests, "d", "twin") == SHARED
    assert ask(harness, digests, "e", "adapter1") == SHARED
    assert ask(harness, digests, "f", None) == SHARED

    oracle = peft_model(model, adapters)
    for label, name in zip("abcdef", ["adapter0", "adapter1", None] * 2, strict=True):
        assert harness.output(label) == greedy(oracle, name, PROMPT, 10), label
    assert len({tuple(harness.output(label)) for label in "abc"}) == 3
    harness.assert_all_is_back()


def test_a_salt_keeps_equal_prompts_apart(run):
    model, _, digests, paths = run
    harness = harness_of(model, paths)
    found = []
    for label, salt in (("a", "one"), ("b", "two"), ("c", "one")):
        harness.generate(
            label, PROMPT, adapter=digests["twin"], salt=salt, max_tokens=4, stop_token_ids=[]
        )
        harness.run()
        found.append(harness.end(label).cached_tokens)
    assert found == [0, 0, SHARED]
    assert harness.output("a") == harness.output("b") == harness.output("c")


def test_without_prefix_caching_nothing_is_shared(run):
    model, _, digests, paths = run
    harness = harness_of(model, paths, enable_prefix_caching=False)
    assert ask(harness, digests, "a", "adapter0") == 0
    assert ask(harness, digests, "b", "adapter0") == 0
    assert harness.output("a") == harness.output("b")
