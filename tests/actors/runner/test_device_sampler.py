"""Drawing without waiting for the device gives what drawing on the host gives."""

import msgspec
import numpy as np
import pytest
import torch

from tests.actors.runner.test_sampler import GREEDY, PROMPT, RANDOM, join, logits_of, rules
from weft.actors.runner.device_sampler import DeviceSampler
from weft.actors.runner.sampler import Sampler
from weft.actors.runner.staging import Staging
from weft.kernels.sample import reference

VOCABULARY = 100
INFINITY, NAN = float("inf"), float("nan")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

ROWS = [
    GREEDY,
    rules(RANDOM, seed=1),
    rules(RANDOM, seed=2, temperature=0.6, top_k=5, top_p=0.9, min_p=0.05, logprobs=3),
    rules(RANDOM, seed=3, repetition_penalty=1.5, presence_penalty=0.5),
    rules(GREEDY, logit_bias={7: 50.0}, logprobs=2),
    rules(RANDOM, seed=4, min_tokens=3, min_tokens_banned=list(range(90))),
    rules(GREEDY, frequency_penalty=0.7, logprobs=0),
    rules(RANDOM, seed=5, top_k=1000),
    rules(GREEDY, min_tokens=9, min_tokens_banned=list(range(VOCABULARY))),
]


def sample_functions():
    """By torch where the logits are on the host, and by Triton where it can run."""
    functions = [] if DEVICE.type == "cuda" else [pytest.param(reference.sample, id="torch")]
    try:
        from weft.kernels.sample import triton
    except ImportError:
        return functions
    marks = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
    return [*functions, pytest.param(triton.sample, id="triton", marks=marks)]


@pytest.fixture(params=sample_functions())
def samplers(request):
    """One that draws on the host, one that draws on the device; rows that are not in order."""
    pair = Sampler(), DeviceSampler(VOCABULARY, 40, DEVICE, request.param)
    for sampler in pair:
        for row, sampling in enumerate(ROWS):
            history = list(PROMPT) if sampling.needs_history else None
            sampler.join(join(row_of(row), sampling, choice=1, history=history))
    return pair


def row_of(index):
    return 39 - 4 * index


def drawn_on_device(sampler, logits, rows, positions, *, room):
    staging = Staging(8192, DEVICE)
    staging.begin()
    wanted = sampler.stage(*(np.array(x, dtype=np.int64) for x in (rows, positions)), staging, room)
    staging.sender()()
    tokens, told = sampler.draw(logits.to(DEVICE), wanted)
    answer = sampler.told(told.cpu().numpy(), wanted)
    assert tokens.tolist() == answer.tokens
    return answer


def assert_same(samplers, logits, which, step, *, room=None):
    on_host, on_device = samplers
    rows, positions = [row_of(i) for i in which], [len(PROMPT) + step] * len(which)
    expected = on_host.sample(logits.clone(), rows, positions)
    actual = drawn_on_device(
        on_device, logits.clone(), rows, positions, room=len(rows) if room is None else room
    )
    assert actual.tokens == expected.tokens.tolist()
    assert actual.failed == expected.failed
    assert [(e.index, e.top_tokens) for e in actual.logprobs] == [
        (e.index, e.top_tokens) for e in expected.logprobs
    ]
    for one, other in zip(actual.logprobs, expected.logprobs, strict=True):
        assert [one.chosen, *one.top] == pytest.approx([other.chosen, *other.top], abs=1e-5)
    return actual


def test_rows_of_all_kinds_draw_the_same_tokens_step_after_step(samplers):
    which = range(len(ROWS))
    for step in range(4):
        answer = assert_same(samplers, logits_of(len(ROWS), seed=step), which, step)
        assert answer.failed == [len(ROWS) - 1]  # every token is banned


def test_rows_draw_the_same_with_room_for_more_and_beside_others(samplers):
    assert_same(samplers, logits_of(3), [1, 4, 2], 0, room=8)
    assert_same(samplers, logits_of(4), [2, 0, 3, 1], 1)
    assert_same(samplers, logits_of(0), [], 2)


@pytest.mark.parametrize("poison", [NAN, INFINITY, -INFINITY])
def test_a_row_that_is_not_finite_fails_alone(samplers, poison):
    logits = logits_of(6)
    logits[2, slice(None) if poison < 0 else 50] = poison
    logits[5, slice(None) if poison < 0 else 40] = poison  # among banned tokens
    assert assert_same(samplers, logits, range(6), 0).failed == [2, 5]


def test_only_rows_whose_past_matters_need_it(samplers):
    _, on_device = samplers
    needing = [i for i in range(len(ROWS)) if on_device.needs_history(np.array([row_of(i)]))]
    assert needing == [3, 6]


def test_a_row_that_has_left_leaves_no_rule_behind(samplers):
    for sampler in samplers:
        sampler.leave(row_of(2))
        sampler.join(join(row_of(2), GREEDY, prompt_tokens=1))
    logits = logits_of(1)
    answer = assert_same(samplers, logits, [2], 0)
    assert answer.tokens == logits.argmax(-1).tolist()


def test_a_rank_that_does_not_draw_is_told_tokens_alone(samplers):
    _, on_device = samplers
    staging = Staging(8192, DEVICE)
    staging.begin()
    wanted = on_device.stage(np.array([row_of(0), row_of(1)]), np.array([4, 4]), staging, 2)
    told = on_device.told(np.array([5, 6]), wanted)
    assert msgspec.to_builtins(list(told)) == [[5, 6], [], []]
