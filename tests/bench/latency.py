"""Time to the first token and between tokens, over ZeroMQ and over HTTP."""

import asyncio
import json
import random
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import httpx
import torch

from tests.bench import models
from tests.bench.serving import generate, serve
from tests.bench.table import markdown

CONCURRENCIES = (1, 8, 32)
ADAPTERS = 4
PROMPT_TOKENS = 64
OUTPUT_TOKENS = 32
REQUESTS_PER_STREAM = 3


def run(shape, *, threads):
    """Return the table."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        folder = models.model_folder(shape, place, torch.float32)
        folders = models.adapter_folders(folder, place, ADAPTERS)
        with serve(folder, folders, threads=threads) as server:
            generate(server, _prompts(ADAPTERS, folders), tokens=2)
            for concurrency in CONCURRENCIES:
                count = max(8, concurrency * REQUESTS_PER_STREAM)
                for name, ask in (("ZeroMQ", generate), ("HTTP", _generate_over_http)):
                    times = ask(
                        server,
                        _prompts(count, folders),
                        tokens=OUTPUT_TOKENS,
                        concurrency=concurrency,
                    )
                    rows.append((f"{concurrency}, {name}", *_cells(times)))
    header = ("requests at once", "time to first token", "between tokens")
    return markdown(header, rows)


def _prompts(count, folders):
    names = list(folders)
    return [
        (names[i % len(names)], [random.randrange(4, 400) for _ in range(PROMPT_TOKENS)])
        for i in range(count)
    ]


def _cells(times):
    firsts = [each[0] for each in times]
    gaps = [b - a for each in times for a, b in pairwise(each)]
    for values in (firsts, gaps):
        high = statistics.quantiles(values, n=20)[-1]
        yield f"{statistics.median(values) * 1e3:.1f} ({high * 1e3:.1f})"


def _generate_over_http(server, prompts, *, tokens, concurrency):
    async def work():
        gate = asyncio.Semaphore(concurrency)
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:

            async def one(model, prompt):
                body = {
                    "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
                    "stream": True, "ignore_eos": True, "skip_special_tokens": False,
                }  # fmt: skip
                async with gate:
                    started, times = time.perf_counter(), []
                    async with client.stream("POST", "/v1/completions", json=body) as response:
                        async for line in response.aiter_lines():
                            if (
                                line.startswith("data: {")
                                and json.loads(line[6:])["choices"][0]["text"]
                            ):
                                times.append(time.perf_counter() - started)
                    return times

            return await asyncio.gather(*(one(*each) for each in prompts))

    return asyncio.run(work())
