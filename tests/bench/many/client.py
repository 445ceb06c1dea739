"""Asks a server for tokens, and keeps what it said and when."""

import asyncio
import time
from typing import NamedTuple

from tests.bench.peers.tokenizer import tokens as tokens_of
from weft.runtime.client import AsyncClient, Finished, Refused, Text


class Question(NamedTuple):
    """What is asked of a model."""

    model: str
    prompt: list[int]
    tokens: int


class Answer(NamedTuple):
    """What came of it; times are seconds from the sending on."""

    tokens: list[int]
    times: list[float]  # of each piece of text
    error: str | None


def ask(server, questions, *, at_once):
    """Return the answers in order, ``at_once`` questions being under way."""

    async def work():
        gate = asyncio.Semaphore(at_once)
        async with await AsyncClient.connect(server.run_dir) as client:

            async def one(question):
                async with gate:
                    return await answer(client, question)

            return await asyncio.gather(*map(one, questions))

    return asyncio.run(work())


async def answer(client, question):
    """Ask one question."""
    started, times, text, error = time.perf_counter(), [], [], None
    try:
        async for event in client.generate(
            prompt=question.prompt, model=question.model, max_tokens=question.tokens,
            temperature=0, ignore_eos=True, skip_special_tokens=False,
        ):  # fmt: skip
            match event:
                case Text(_, piece):
                    times.append(time.perf_counter() - started)
                    text.append(piece)
                case Finished(error=error):
                    pass
    except Refused as refused:
        error = f"{refused.code}: {refused}"
    return Answer(tokens_of("".join(text)), times, error)


def inspect(server):
    """Return the counters of every process, after each has checked its invariants."""

    async def work():
        async with await AsyncClient.connect(server.run_dir) as client:
            return (await client.inspect()).sections

    return asyncio.run(work())
