"""The right answer for the right adapter, whoever else is served and whoever leaves."""

import asyncio
import random
import signal
import subprocess
import sys

import httpx
import pytest

from tests.system.chats import (
    MODELS,
    assert_each_task_is_done,
    connected,
    gather_over_http,
    gather_over_zmq,
    question,
)
from tests.system.runs import TIMEOUT_S
from weft.runtime.client import AsyncClient, Text

pytestmark = pytest.mark.system

STREAMS = 64

# A client of its own process, which is killed while it reads.
READER = """
import sys
from weft.runtime.client import Client
with Client(sys.argv[1]) as client:
    streams = [client.generate(prompt="The", ignore_eos=True) for _ in range(3)]
    print("reading", flush=True)
    for stream in streams:
        for event in stream:
            pass
"""


@pytest.mark.parametrize("gather", [gather_over_http, gather_over_zmq])
def test_each_adapter_does_its_task_in_the_same_batches(weft, held_out, gather):
    asked = [(example["task"], example["prompt"]) for example in held_out]
    answers = asyncio.run(gather(weft, asked, temperature=0))
    assert_each_task_is_done(held_out, answers)


def test_the_base_does_none_of_the_tasks_and_stands_for_a_missing_model(weft, http, held_out):
    asked = [("weft-demo", example["prompt"]) for example in held_out]
    answers = asyncio.run(gather_over_zmq(weft, asked, temperature=0, max_tokens=64))
    assert not [
        example
        for example, answer in zip(held_out, answers, strict=True)
        if answer == example["answer"]
    ]
    body = {"messages": question(held_out[0]["prompt"]), "temperature": 0, "max_tokens": 64}
    response = http.post("/v1/chat/completions", json=body).json()
    assert response["model"] == "weft-demo"
    assert response["choices"][0]["message"]["content"] == answers[0]


@pytest.mark.parametrize("gather", [gather_over_http, gather_over_zmq])
def test_a_sampled_answer_does_not_depend_on_its_neighbours(weft, held_out, gather):
    options = {"temperature": 0.8, "seed": 7, "max_tokens": 40}
    me = ("weft-demo", "Tell me a story about a loom.")
    [alone] = asyncio.run(gather(weft, [me], **options))
    others = [(MODELS[i % 5], held_out[i]["prompt"]) for i in range(30)]
    random.Random(3).shuffle(others)
    crowd = [*others[:15], me, *others[15:]]
    assert asyncio.run(gather(weft, crowd, **options))[15] == alone


def test_a_cramped_server_gives_the_same_answers(weft, serve, held_out):
    """One adapter at a time, pages for hardly two, few rows, prompts in pieces.

    Only the order may differ.
    """
    asked = [(MODELS[i % 5], example["prompt"]) for i, example in enumerate(held_out)]
    options = {"temperature": 0.8, "seed": 3, "max_tokens": 64}
    expected = asyncio.run(gather_over_zmq(weft, asked, **options))
    cramped = serve(
        max_loras_per_batch=1, max_loaded_loras=3, kv_cache_memory_mib=2, max_num_seqs=12,
        max_num_batched_tokens=16, block_size=4,
    )  # fmt: skip
    assert asyncio.run(gather_over_zmq(cramped, asked, **options)) == expected
    scheduler = cramped.state()["sections"]["scheduler"]
    assert scheduler["adapter_evictions_total"] >= 3
    assert scheduler["preemptions_total"] > 0
    cramped.assert_all_is_back()


def test_streams_are_complete_though_others_are_cut(weft, held_out):
    """64 streams over 5 models, a third of which is cut at a random place."""
    rng = random.Random(11)
    prompts = rng.sample([example["prompt"] for example in held_out], STREAMS)
    asked = [(MODELS[i % 5], prompt) for i, prompt in enumerate(prompts)]
    cuts = [rng.randrange(1, 12) if rng.random() < 0.33 else None for _ in asked]
    assert 10 < len([cut for cut in cuts if cut]) < 40
    expected = asyncio.run(gather_over_zmq(weft, asked, temperature=0, max_tokens=64))
    streamed = asyncio.run(_stream(weft, asked, cuts))
    for cut, text, whole, each in zip(cuts, streamed, expected, asked, strict=True):
        assert text == whole or (cut is not None and whole.startswith(text)), each
    weft.assert_all_is_back()


async def _stream(weft, asked, cuts):
    async with connected(weft) as client:

        async def one(model, prompt, cut):
            text, chunks = "", 0
            async with await client.chat.completions.create(
                model=model, messages=question(prompt), stream=True, temperature=0, max_tokens=64
            ) as stream:
                async for chunk in stream:
                    text += chunk.choices[0].delta.content or ""
                    chunks += 1
                    if chunks == cut:
                        break
            return text

        return await asyncio.gather(
            *(one(*each, cut) for each, cut in zip(asked, cuts, strict=True))
        )


def test_a_client_that_waits_for_a_whole_answer_and_leaves_is_noticed(weft):
    body = {"prompt": "The", "ignore_eos": True, "max_tokens": 2000}
    patience = httpx.Timeout(TIMEOUT_S, read=0.3)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{weft.url}/v1/completions", json=body, timeout=patience)
    weft.assert_all_is_back()


def test_a_killed_client_frees_what_it_held(weft):
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(weft.run_dir)], stdout=subprocess.PIPE
    )
    assert reader.stdout.readline() == b"reading\n"
    while weft.held()["scheduler's rows_running"] < 3:
        assert reader.poll() is None
    reader.send_signal(signal.SIGKILL)
    reader.communicate(timeout=TIMEOUT_S)
    weft.assert_all_is_back()


def test_cancelled_requests_end_and_free_everything(weft):
    async def work():
        async with await AsyncClient.connect(weft.run_dir) as client:

            async def one(number):
                stream = client.generate(
                    prompt="The", model=MODELS[number % 5], ignore_eos=True, n=2, max_tokens=1000
                )
                async for event in stream:
                    if isinstance(event, Text):
                        stream.cancel()
                return event

            return await asyncio.gather(*(one(number) for number in range(20)))

    assert {event.reason for event in asyncio.run(work())} == {"cancelled"}
    weft.assert_all_is_back()
