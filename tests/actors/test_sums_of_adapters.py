"""Several adapters in one request give the tokens of PEFT with all of them active, in any batch."""

import random

import pytest

from tests.actors.runner.engines import harness_of
from tests.actors.test_every_kind_of_adapter import stored
from tests.checkpoints import (
    MODULES,
    LoraConfig,
    adapter_configs,
    greedy,
    peft_model,
    save_adapters,
    save_model,
)
from weft.actors.runner.operations import NATIVE
from weft.kernels.paged_attention import cpu as paged_attention
from weft.kernels.sgmv import cpu as sgmv

# A checkpoint, an oracle and some runs for each architecture: seconds each.
pytestmark = [
    pytest.mark.slow,
    # PEFT takes biases of B for matrices that were cut up, and cannot merge all of them.
    pytest.mark.filterwarnings("ignore:.*(have invalid shape|lora_bias=True)"),
]

OUTPUT = 16
SCALES = (1.0, 1.0, 0.5, -0.75, 2.0)


def with_biases(rank):
    return LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=12, target_modules=list(MODULES), lora_bias=True
    )


@pytest.fixture(scope="module", params=["llama-mha-bias", "qwen2.5-tied", "qwen3"])
def checkpoint(request, tmp_path_factory):
    """A model folder, its adapters, and requests with what transformers and PEFT answer to them."""
    folder = tmp_path_factory.mktemp(request.param)
    model = save_model(folder / "model", request.param)
    configs = [*adapter_configs(7), with_biases(8), with_biases(3)]
    adapters = save_adapters(folder, model, 0, configs=configs)
    oracle = peft_model(folder / "model", adapters)
    rng = random.Random(0)
    requests = {}
    for index in range(24):
        names = rng.sample(list(adapters), rng.choice([0, 1, 1, 2, 2, 3, 4]))
        scales = {name: rng.choice(SCALES) for name in names} or None
        prompt = [rng.randrange(160) for _ in range(rng.choice([1, 3, 17, 40]))]
        requests[f"r{index}"] = (scales, prompt, greedy(oracle, scales, prompt, OUTPUT))
    both = dict.fromkeys(list(adapters)[-2:], 1.0)
    prompt = [1, 2, 3]
    by_scale = [greedy(oracle, both | {"adapter8": scale}, prompt, OUTPUT) for scale in (0.5, 1, 2)]
    assert len(set(map(tuple, by_scale))) == 3, "a scale changes nothing"
    return folder / "model", adapters, requests


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"max_loras_per_batch": 9}, id="one-batch"),
        pytest.param(
            {"max_loras_per_batch": 4, "max_num_batched_tokens": 24, "max_num_seqs": 16},
            id="chunks-and-few-slots",
        ),
        pytest.param({"max_loras_per_batch": 9, "native": False}, id="without-a-compiler"),
        pytest.param({"max_loras_per_batch": 9, "tensor_parallel_size": 2}, id="two-ranks"),
    ],
)
def test_tokens_are_those_of_peft_with_all_adapters_active(
    checkpoint, options, tmp_path, monkeypatch
):
    model, adapters, requests = checkpoint
    options = dict(options)
    if not options.pop("native", True):
        for kernel in (*NATIVE, paged_attention, sgmv):
            monkeypatch.setattr(kernel, "library", lambda: None)
    digests, acquired = stored(model, adapters, tmp_path, options.get("tensor_parallel_size", 1))
    paths = {digest: each.path for digest, each in acquired.items()}
    harness = harness_of(model, paths, **options)
    for label, (scales, prompt, _) in requests.items():
        harness.generate(
            label,
            prompt,
            adapter={digests[name]: scale for name, scale in (scales or {}).items()},
            max_tokens=OUTPUT,
            stop_token_ids=[],
        )
    harness.run()
    harness.assert_all_is_back()
    for label, (scales, _, expected) in requests.items():
        assert harness.output(label) == expected, (label, scales)
