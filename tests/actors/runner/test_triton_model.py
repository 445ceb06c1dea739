"""The forward pass of whole models through the Triton operations, interpreted on a CPU."""

import random

import msgspec
import pytest
import torch

from tests.actors.runner.engines import engine_of, harness_of, prefill
from tests.actors.scheduler_harness import GREEDY
from tests.checkpoints import save_model
from weft.actors.runner import operations

pytest.importorskip("triton")
import triton

LOGPROBS = msgspec.structs.replace(GREEDY, logprobs=20)
CPU = torch.device("cpu")

VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
pytestmark = [
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="where there is a GPU, Triton compiles for it"
    ),
    pytest.mark.skipif(
        VERSION < (3, 7), reason="its interpreter cannot loop to a bound that a kernel computes"
    ),
]


@pytest.fixture
def interpreted(monkeypatch):
    """A function that lets the engines made from then on compute in Triton."""

    def begin():
        in_triton = operations.in_triton(CPU, processors=4)
        monkeypatch.setattr(operations, "choose", lambda device, int8: in_triton)

    return begin


def prompts_of(*lengths):
    rng = random.Random(0)
    return [[rng.randrange(160) for _ in range(length)] for length in lengths]


def test_log_probabilities_are_those_of_torch(tmp_path, interpreted):
    save_model(tmp_path, "qwen2")
    [prompt] = prompts_of(11)
    [expected] = prefill(engine_of(tmp_path), [prompt], sampling=LOGPROBS).logprobs
    interpreted()
    [actual] = prefill(engine_of(tmp_path), [prompt], sampling=LOGPROBS).logprobs
    assert actual.top_tokens == expected.top_tokens
    torch.testing.assert_close(
        torch.tensor(actual.top), torch.tensor(expected.top), rtol=0, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "llama3.1", "mistral", "qwen2", "qwen2-window", "qwen3"])
def test_tokens_of_a_mixed_batch_are_those_of_torch(tmp_path, interpreted, name):
    """Of prompts in chunks beside decodes, with prefixes that are cached."""
    save_model(tmp_path, name)
    first, second, third = prompts_of(70, 9, 30)
    prompts = {"long": first, "short": second, "middle": third, "prefix": first[:40] + third}

    def outputs():
        harness = harness_of(tmp_path, {}, max_num_batched_tokens=32, max_num_seqs=8)
        for label, prompt in prompts.items():
            harness.generate(label, prompt, max_tokens=6, stop_token_ids=[])
        harness.run()
        harness.assert_all_is_back()
        return {label: harness.output(label) for label in prompts}

    expected = outputs()
    interpreted()
    assert outputs() == expected
