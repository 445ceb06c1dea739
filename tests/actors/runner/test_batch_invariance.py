"""With the kernels in C, a row's numbers are the same bits whoever else is in the batch."""

import random

import pytest
import torch
from transformers import Qwen2Config

from tests.actors.runner.engines import harness_of, save_several
from tests.checkpoints import SMALL, random_model
from weft.kernels.paged_attention import cpu as attention
from weft.kernels.sgmv import cpu as sgmv
from weft.runtime.messages import RowSampling

pytestmark = pytest.mark.skipif(
    sgmv.library() is None or attention.library() is None, reason="no C compiler"
)

A, B, C, OWN = "a" * 64, "b" * 64, "c" * 64, "d" * 64
KINDS = {
    A: {"rank": 5, "vector": "magnitude"},
    B: {"rank": 8, "vector": "bias"},
    C: {"rank": 64},
    OWN: {"rank": 3, "own_tokens": [5, 160, 161]},
}
USED = {"base": None, "a": A, "b": B, "c": C, "sum": {C: -0.5, B: 1.0}, "own": OWN}
PROMPT = [random.Random(1).randrange(160) for _ in range(45)]
TOKENS = 12


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16", "int8"])
def storage(request):
    """How weights lie in memory."""
    return request.param


@pytest.fixture(scope="module")
def model(storage, tmp_path_factory):
    """A model wide enough for kernels to split their work, in each type of weights."""
    folder = tmp_path_factory.mktemp(storage) / "model"
    wide = SMALL | {"hidden_size": 256, "intermediate_size": 2300, "num_attention_heads": 4}
    dtype = torch.bfloat16 if storage == "int8" else getattr(torch, storage)
    random_model(Qwen2Config(**wide), dtype=dtype).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def paths(model):
    return save_several(model.parent, model, KINDS)


@pytest.fixture(scope="module", params=[1, 3], ids="{}-threads".format)
def threads(request):
    """How work is split among threads must not matter either."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def start(storage, model, paths, threads):
    """A function that returns a new scheduler with its engine."""
    quantization = "int8" if storage == "int8" else None
    return lambda: harness_of(model, paths, kv_cache_memory_mib=16, quantization=quantization)


@pytest.fixture(scope="module")
def crowd(start):
    """What the requests of each adapter were told that came while 30 others were served."""
    harness, rng, mine = start(), random.Random(2), iter(USED)
    for index in range(30):
        if index % 5 == 3:
            name = next(mine)
            ask(harness, f"me-{name}", PROMPT, USED[name])
        prompt = [rng.randrange(160) for _ in range(rng.randrange(1, 60))]
        ask(harness, f"other-{index}", prompt, rng.choice(list(USED.values())))
    harness.run()
    return {name: told(harness, f"me-{name}") for name in USED}


def ask(harness, label, prompt, adapter):
    sampling = RowSampling(0.8, 1.0, 0, 0.0, 7, logprobs=2)
    harness.generate(
        label, prompt, adapter=adapter, max_tokens=TOKENS, stop_token_ids=[], sampling=sampling
    )


def told(harness, label):
    """A request's tokens with their log probabilities, as the exact floats that were sent."""
    number = harness.begun[label].first_sequence
    return harness.tokens[number], harness.logprobs[number]


@pytest.mark.parametrize("name", USED)
def test_log_probabilities_are_bit_equal_alone_and_in_a_full_batch(start, crowd, name):
    alone = start()
    ask(alone, "me", PROMPT, USED[name])
    alone.run()
    tokens, logprobs = told(alone, "me")
    assert (tokens, logprobs) == crowd[name]
    assert len(logprobs) == TOKENS
