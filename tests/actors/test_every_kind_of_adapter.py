"""All that a LoRA configuration can ask for gives PEFT's tokens, in one batch with all else."""

import random

import pytest

from tests.actors.runner.engines import harness_of
from tests.checkpoints import every_kind, greedy, peft_model, save_adapters, save_model
from tests.sim.files import store_on_disk
from weft.actors.adapters.base import BaseShapes
from weft.actors.runner.operations import NATIVE
from weft.kernels.paged_attention import cpu as paged_attention
from weft.kernels.sgmv import cpu as sgmv
from weft.runtime.actor import Turn
from weft.runtime.config import Config
from weft.runtime.messages import Acquire

# A checkpoint, an oracle and some runs for each architecture: seconds each.
pytestmark = [
    pytest.mark.slow,
    # PEFT takes biases of B for matrices that were cut up, and cannot merge all of them.
    pytest.mark.filterwarnings("ignore:.*(have invalid shape|lora_bias=True)"),
]

OUTPUT = 16


@pytest.fixture(scope="module", params=["llama-mha-bias", "qwen2.5-tied", "qwen3"])
def checkpoint(request, tmp_path_factory):
    """A model folder, its adapters, and requests with what transformers and PEFT answer to them."""
    folder = tmp_path_factory.mktemp(request.param)
    model = save_model(folder / "model", request.param)
    adapters = save_adapters(folder, model, 0, configs=every_kind())
    oracle = peft_model(folder / "model", adapters)
    rng = random.Random(0)
    requests = {}
    for index, adapter in enumerate([None, *adapters, *adapters, None]):
        prompt = [rng.randrange(160) for _ in range(rng.choice([1, 3, 17, 40]))]
        requests[f"r{index}"] = (adapter, prompt, greedy(oracle, adapter, prompt, OUTPUT))
    by_adapter = {tuple(greedy(oracle, name, [1, 2, 3], OUTPUT)) for name in [None, *adapters]}
    assert len(by_adapter) == len(adapters) + 1, "some adapter changes nothing"
    return folder / "model", adapters, requests


def stored(model, adapters, place, size):
    """What the store makes of adapters: name -> digest, digest -> where it lies and how large."""
    named = {name: str(path) for name, path in adapters.items()}
    settings = Config(model=str(model), adapters=named, tensor_parallel_size=size)
    store = store_on_disk(settings, BaseShapes.load(settings.model), place)
    turn = Turn(0, lambda peer: 100)
    [(_, catalog)] = store.advance(turn)
    assert [entry.refused for entry in catalog.adapters] == [None] * len(adapters)
    acquired = {}
    for entry in catalog.adapters:
        store.receive("scheduler", Acquire(entry.digest), 0)
        [(_, acquired[entry.digest])] = store.advance(turn)
    return {entry.name: entry.digest for entry in catalog.adapters}, acquired


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"max_loras_per_batch": 8}, id="one-batch"),
        pytest.param(
            {"max_loras_per_batch": 2, "max_num_batched_tokens": 24, "max_num_seqs": 16},
            id="chunks",
        ),
        pytest.param({"max_loras_per_batch": 8, "native": False}, id="without-a-compiler"),
        pytest.param({"max_loras_per_batch": 8, "tensor_parallel_size": 2}, id="two-ranks"),
    ],
)
def test_tokens_of_a_mixed_batch_are_those_of_peft(checkpoint, options, tmp_path, monkeypatch):
    model, adapters, requests = checkpoint
    options = dict(options)
    if not options.pop("native", True):
        for kernel in (*NATIVE, paged_attention, sgmv):
            monkeypatch.setattr(kernel, "library", lambda: None)
    digests, acquired = stored(model, adapters, tmp_path, options.get("tensor_parallel_size", 1))
    paths = {digest: each.path for digest, each in acquired.items()}
    harness = harness_of(model, paths, **options)
    granules = {digest: each.granules for digest, each in acquired.items()}
    assert harness.granules == granules
    for label, (adapter, prompt, _) in requests.items():
        harness.generate(
            label,
            prompt,
            adapter=adapter and digests[adapter],
            max_tokens=OUTPUT,
            stop_token_ids=[],
        )
    harness.run()
    harness.assert_all_is_back()
    for label, (adapter, _, expected) in requests.items():
        assert harness.output(label) == expected, (label, adapter)
