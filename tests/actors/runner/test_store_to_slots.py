"""From what PEFT saves, through the adapter store, to tokens: in every type and spelling."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.actors.runner.engines import harness_of
from tests.checkpoints import greedy, peft_model, save_adapters, save_model
from tests.sim.files import store_on_disk
from weft.actors.adapters.base import BaseShapes
from weft.runtime.actor import Turn
from weft.runtime.config import Config
from weft.runtime.messages import Acquire

PROMPTS = [[7, 3, 99, 42, 15], list(range(20, 50)), [1]]
TOKENS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, "qwen2.5-tied")
    return folder


@pytest.fixture
def respelt(model, tmp_path):
    """A function that saves adapters and changes their files; returns their paths by name."""

    def save(change):
        paths = save_adapters(tmp_path, peft_model(model, {}), 5)
        for path in paths.values():
            file = path / "adapter_model.safetensors"
            save_file(dict(change(*item) for item in load_file(file).items()), file)
        return paths

    return save


def answers(model, paths, run_dir):
    """Tokens by adapter and prompt, of one batch of all of them."""
    named = {name: str(path) for name, path in paths.items()}
    settings = Config(model=str(model), adapters=named)
    base = BaseShapes.load(settings.model)
    store = store_on_disk(settings, base, run_dir)
    turn = Turn(0, lambda peer: 100)
    [(_, catalog)] = store.advance(turn)
    assert [entry.refused for entry in catalog.adapters] == [None] * len(paths)
    files = {}
    for entry in catalog.adapters:
        store.receive("scheduler", Acquire(entry.digest), 0)
        [(_, acquired)] = store.advance(turn)
        files[entry.digest] = acquired.path
    harness = harness_of(model, files, max_loras_per_batch=3)
    for entry in catalog.adapters:
        for index, prompt in enumerate(PROMPTS):
            label = f"{entry.name}-{index}"
            harness.generate(
                label, prompt, adapter=entry.digest, max_tokens=TOKENS, stop_token_ids=[]
            )
    harness.run()
    harness.assert_all_is_back()
    return {
        (name, index): harness.output(f"{name}-{index}")
        for name in paths
        for index in range(len(PROMPTS))
    }


def expected(model, paths):
    oracle = peft_model(model, paths)
    return {
        (name, index): greedy(oracle, name, prompt, TOKENS)
        for name in paths
        for index, prompt in enumerate(PROMPTS)
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_adapters_of_any_type_give_the_tokens_of_peft(model, respelt, tmp_path, dtype):
    paths = respelt(lambda name, tensor: (name, tensor.to(dtype)))
    found = answers(model, paths, tmp_path / "run")
    assert found == expected(model, paths)
    assert len({tuple(tokens) for tokens in found.values()}) > len(paths)


def test_an_adapter_of_the_bare_model_gives_the_tokens_of_one_of_the_whole(
    model, respelt, tmp_path
):
    paths = respelt(lambda name, tensor: (name, tensor))
    whole = expected(model, paths)
    paths = respelt(lambda name, tensor: (name.replace(".model.model.", ".model."), tensor))
    assert answers(model, paths, tmp_path / "run") == whole
