"""How long answers pause when a runner is killed: the only one, or that of one of two replicas."""

import asyncio
import os
import signal
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import httpx
import torch

from tests.bench import models
from tests.bench.load import Load, make_prompts
from tests.bench.serving import serve
from tests.bench.table import markdown
from weft.runtime.client import AsyncClient, Text

STREAMS = 16
LOAD = Load(STREAMS, 64, 256)
ADAPTERS = 4
RANKS = (1, 2)

# Of one stream, before the kill; then all are in the middle of their answers.
TEXTS_BEFORE = 16

READY_POLL_S = 0.002


def run(shape, *, rounds, threads):
    """Return the table."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        folder = models.model_folder(shape, place, torch.float32)
        adapters = models.adapter_folders(folder, place, ADAPTERS)
        for ranks in RANKS:
            options = {"threads": max(1, threads // ranks), "tensor_parallel_size": ranks}
            with serve(folder, adapters, **options) as server:
                measured = [_kill(server, list(adapters), ranks - 1) for _ in range(rounds)]
            columns = zip(*measured, strict=True)
            rows.append((ranks, *(f"{statistics.median(column):.2f}" for column in columns)))
    header = ("runners", "/ready says 503", "first stream goes on", "last stream goes on")
    return markdown(header, rows)


def run_replicas(shape, *, rounds, threads):
    """Return the table of one of two replicas."""
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        folder = models.model_folder(shape, place, torch.float32)
        adapters = models.adapter_folders(folder, place, ADAPTERS)
        options = {"threads": max(1, threads // 2), "data_parallel_size": 2}
        with serve(folder, adapters, **options) as server:
            measured = [_kill_one_of_two(server, list(adapters)) for _ in range(rounds)]
    columns = zip(*measured, strict=True)
    header = (
        "longest pause of a stream, before the kill", "of those that its replica had, after it",
        "of the others", "first token of new requests, median", "slowest",
    )  # fmt: skip
    return markdown(header, [[f"{statistics.median(column):.3f}" for column in columns]])


def _kill_one_of_two(server, names):
    """Kill one of two replicas amid streams, and go on asking; return seconds, by column.

    Whose streams are whose follows from their numbers. New requests come one after another, until
    streams are over that were there before.
    """
    prompts = make_prompts(LOAD, names)

    async def work():
        texts = [[] for _ in prompts]
        begun, first_tokens = asyncio.Event(), []
        async with await AsyncClient.connect(server.run_dir) as client:

            async def ask_on(streams):
                while not all(stream.done() for stream in streams):
                    asked_at = time.perf_counter()
                    model, prompt = prompts[len(first_tokens) % len(prompts)]
                    async for event in client.generate(
                        prompt=prompt, model=model, temperature=0, ignore_eos=True, max_tokens=4
                    ):
                        if isinstance(event, Text):
                            first_tokens.append(time.perf_counter() - asked_at)
                            break

            async with asyncio.TaskGroup() as group:
                streams = _begin(group, client, prompts, texts, begun)
                await begun.wait()
                os.kill(_pid(server.run_dir, "runner1_0"), signal.SIGKILL)
                killed_at = time.perf_counter()
                await ask_on(streams)
            await _until_whole(server.url)
        before = max(_longest(times, 0.0, killed_at) for times in texts)
        pauses = sorted(_longest(times, killed_at, float("inf")) for times in texts)
        # Requests were shared evenly, and the pauses of those that have lost theirs are longer.
        lost, others = pauses[len(pauses) // 2 :], pauses[: len(pauses) // 2]
        return [before, max(lost), max(others), statistics.median(first_tokens), max(first_tokens)]

    return asyncio.run(work())


def _begin(group, client, prompts, texts, begun):
    """Start streams, and note when each text comes; ``begun`` is set once all have had some."""

    async def one(model, prompt, times):
        async for event in client.generate(
            prompt=prompt, model=model, temperature=0, ignore_eos=True,
            max_tokens=LOAD.output_tokens, skip_special_tokens=False,
        ):  # fmt: skip
            if isinstance(event, Text):
                times.append(time.perf_counter())
                if min(map(len, texts)) >= TEXTS_BEFORE:
                    begun.set()

    pairs = zip(prompts, texts, strict=True)
    return [group.create_task(one(*prompt, times)) for prompt, times in pairs]


def _longest(times, since, until):
    """The longest gap between two texts of a stream, of those that end within this time."""
    return max((b - a for a, b in pairwise(times) if since < b <= until), default=0.0)


async def _until_whole(url):
    """Until both replicas are there again."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while True:
            sections = (await client.get("/debug/state")).json()["sections"]
            if all(sections[f"scheduler{index}"]["runners_ready"] for index in range(2)):
                return
            await asyncio.sleep(0.05)


def _kill(server, names, rank):
    """Kill a runner amid streams; return seconds from then to what the table's columns say."""
    prompts = make_prompts(LOAD, names)

    async def work():
        texts, killed_at = [[] for _ in prompts], 0.0
        begun = asyncio.Event()
        async with (
            await AsyncClient.connect(server.run_dir) as client,
            asyncio.TaskGroup() as group,
        ):
            _begin(group, client, prompts, texts, begun)
            await begun.wait()
            os.kill(_pid(server.run_dir, f"runner{rank}"), signal.SIGKILL)
            killed_at = time.perf_counter()
            unready_at = await _until_unready(server.url)
        resumed = [_end_of_longest_gap(times, killed_at) for times in texts]
        return [at - killed_at for at in (unready_at, min(resumed), max(resumed))]

    return asyncio.run(work())


async def _until_unready(url):
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while (await client.get("/ready")).status_code == 200:
            await asyncio.sleep(READY_POLL_S)
    return time.perf_counter()


def _end_of_longest_gap(times, since):
    """When a stream went on: what was on its way when its runner died still came."""
    after = [since, *(at for at in times if at > since)]
    return max(pairwise(after), key=lambda gap: gap[1] - gap[0])[1]


def _pid(run_dir, role):
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if role in arguments and str(run_dir) in arguments:
            return int(folder.name)
    raise ProcessLookupError(f"{role} is not there")
