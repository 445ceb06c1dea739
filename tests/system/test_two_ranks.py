"""One model over several runners: the same answers, and none of them outlives the others."""

import asyncio
import random

import httpx
import pytest

from tests.system.chats import (
    MODELS,
    assert_each_task_is_done,
    gather_over_http,
    gather_over_zmq,
    kill_while_answering,
)
from tests.system.runs import TIMEOUT_S, Server

pytestmark = pytest.mark.system

ONE_LINE = "tensor_parallel_size: 2"


@pytest.fixture
def pair(serve):
    return serve(lines=ONE_LINE)


def test_two_runners_answer_as_one_does(pair, held_out):
    asked = [(example["task"], example["prompt"]) for example in held_out]
    answers = asyncio.run(gather_over_http(pair, asked, temperature=0))
    assert_each_task_is_done(held_out, answers)
    pair.assert_all_is_back()
    sections = pair.state()["sections"]
    assert {"runner0", "runner1"} < sections.keys()
    assert not list(pair.run_dir.rglob("collectives"))  # memory that only they have
    pair.stop()
    assert pair.end()[0] == 0, pair.log.read_text()
    pair.assert_nothing_is_left()


def test_a_cramped_pair_gives_each_seed_the_tokens_of_a_single_runner(weft, serve, held_out):
    """Few pages and rows, prompts in pieces, one adapter at a time, on both ranks alike."""
    prompts = random.Random(5).sample([example["prompt"] for example in held_out], 60)
    asked = [(MODELS[i % 5], prompt) for i, prompt in enumerate(prompts)]
    options = {"temperature": 0.8, "seed": 3, "max_tokens": 48}
    expected = asyncio.run(gather_over_zmq(weft, asked, **options))
    pair = serve(
        lines=ONE_LINE, max_loras_per_batch=1, max_loaded_loras=3, kv_cache_memory_mib=3,
        max_num_seqs=12, max_num_batched_tokens=16, block_size=4,
    )  # fmt: skip
    assert asyncio.run(gather_over_zmq(pair, asked, **options)) == expected
    assert pair.state()["sections"]["scheduler"]["preemptions_total"] > 0
    pair.assert_all_is_back()


def test_when_the_launcher_is_killed_nobody_is_left(pair):
    kill_while_answering(pair, "launcher")
    pair.end()
    pair.assert_nothing_is_left()


def test_without_a_compiler_runners_find_each_other_too(serve, monkeypatch):
    monkeypatch.setenv("CC", "/no/compiler")
    pair = serve(lines=ONE_LINE)
    body = {"model": "math", "prompt": "The", "max_tokens": 8, "ignore_eos": True, "n": 3}
    answer = httpx.post(f"{pair.url}/v1/completions", json=body, timeout=TIMEOUT_S).json()
    assert answer["usage"]["completion_tokens"] == 24
    pair.assert_all_is_back()
    pair.stop()
    assert pair.end()[0] == 0, pair.log.read_text()
    pair.assert_nothing_is_left()


def test_a_size_that_the_model_does_not_divide_by_is_one_line(place):
    server = Server(place, tensor_parallel_size=3)
    assert server.end()[0] == 2
    error = server.log.read_text().splitlines()[-1]
    assert "tensor_parallel_size is 3: the model's 4 attention heads do not divide by it" in error
    assert error.endswith("use 1, 2 or 4")
