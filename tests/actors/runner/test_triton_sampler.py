"""The sampler with Triton's kernel gives what it gives with torch."""

import msgspec
import pytest
import torch

from tests.actors.runner.test_sampler import GREEDY, PROMPT, RANDOM, logits_of, rules
from weft.actors.runner.sampler import Sampler

pytest.importorskip("triton")
from weft.kernels.sample.triton import sample

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cuda":
    pytestmark = pytest.mark.gpu
INFINITY, NAN = float("inf"), float("nan")

ROWS = [
    GREEDY,
    rules(RANDOM, seed=1),
    rules(RANDOM, seed=2, temperature=0.6, top_k=5, top_p=0.9, min_p=0.05, logprobs=3),
    rules(RANDOM, seed=3, repetition_penalty=1.5, presence_penalty=0.5),
    rules(GREEDY, logit_bias={7: 50.0}, logprobs=2),
    rules(RANDOM, seed=4, min_tokens=3, min_tokens_banned=list(range(90))),
    rules(GREEDY, min_tokens=9, min_tokens_banned=list(range(100))),
]


def samplers():
    with_torch, on_device = Sampler(100, DEVICE), Sampler(100, DEVICE, sample)
    for sampler in (with_torch, on_device):
        for row, sampling in enumerate(ROWS):
            history = list(PROMPT) if sampling.needs_history else None
            sampler.join(row, sampling, choice=1, prompt_tokens=len(PROMPT), history=history)
    return with_torch, on_device


def test_mixed_rows_draw_the_same_tokens_step_after_step():
    with_torch, on_device = samplers()
    for step in range(3):
        logits = logits_of(len(ROWS), seed=step).to(DEVICE)
        positions = [len(PROMPT) + step] * len(ROWS)
        expected = with_torch.sample(logits.clone(), range(len(ROWS)), positions)
        actual = on_device.sample(logits.clone(), range(len(ROWS)), positions)
        assert actual.tokens.equal(expected.tokens)
        assert actual.failed == expected.failed == [6]  # every token is banned
        assert msgspec.to_builtins(actual.logprobs) == msgspec.to_builtins(expected.logprobs)


@pytest.mark.parametrize("poison", [NAN, INFINITY])
def test_a_row_that_is_not_finite_fails_alone(poison):
    with_torch, on_device = samplers()
    logits = logits_of(4).to(DEVICE)
    logits[1, 50] = poison
    positions = [len(PROMPT)] * 4
    expected = with_torch.sample(logits.clone(), range(4), positions)
    actual = on_device.sample(logits.clone(), range(4), positions)
    assert actual.failed == expected.failed == [1]
    assert actual.tokens.equal(expected.tokens)
