"""What system tests ask of a server, over HTTP and over ZeroMQ."""

import asyncio
import os
import signal
from collections import Counter

import httpx
import openai
import pytest

from tests.system.runs import TIMEOUT_S
from weft.runtime.client import AsyncClient, Disconnected

TASKS = ("sql", "math", "function", "emotion")
MODELS = (*TASKS, "weft-demo")


def question(prompt):
    return [{"role": "user", "content": prompt}]


def connected(weft):
    """openai-python's client, with as many connections as it is asked for."""
    return openai.AsyncOpenAI(
        base_url=f"{weft.url}/v1",
        api_key="none",
        max_retries=0,
        http_client=httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=TIMEOUT_S),
    )


async def gather_over_http(weft, asked, **options):
    """The texts of many chats, (model, prompt) each, all at once."""
    async with connected(weft) as client:

        async def one(model, prompt):
            response = await client.chat.completions.create(
                model=model, messages=question(prompt), **options
            )
            return response.choices[0].message.content

        return await asyncio.gather(*(one(*each) for each in asked))


async def gather_over_zmq(weft, asked, **options):
    async with await AsyncClient.connect(weft.run_dir) as client:

        async def one(model, prompt):
            chat = client.chat(question(prompt), model=model, **options)
            return "".join([text async for text in chat])

        return await asyncio.gather(*(one(*each) for each in asked))


def assert_each_task_is_done(held_out, answers):
    """Assert that each adapter has answered the prompts of its own task, but for a few."""
    right = Counter()
    for example, answer in zip(held_out, answers, strict=True):
        right[example["task"]] += answer == example["answer"]
    total = Counter(example["task"] for example in held_out)
    assert all(right[task] >= 0.9 * total[task] for task in TASKS), right


async def begun(client, *, max_tokens):
    """The events of a request that is being answered."""
    events = aiter(client.generate(prompt="The", ignore_eos=True, max_tokens=max_tokens))
    for _ in range(3):
        await anext(events)
    return events


def kill_while_answering(server, role):
    """Kill a process of a run; the client that is being answered must hear of it."""

    async def work():
        async with await AsyncClient.connect(server.run_dir) as client:
            events = await begun(client, max_tokens=2000)
            if role == "launcher":
                server.stop(signal.SIGKILL)
            else:
                os.kill(server.processes()[role], signal.SIGKILL)
            async with asyncio.timeout(TIMEOUT_S):
                with pytest.raises(Disconnected):
                    async for _ in events:
                        pass

    asyncio.run(work())
