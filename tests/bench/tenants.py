"""What a tenant that asks now and then notices of one that floods, over real processes."""

import asyncio
import random
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager

from tests.bench import models
from tests.bench.serving import serve
from tests.bench.table import markdown
from weft.runtime.client import AsyncClient, Refused, Text

FLOOD_PER_S = 100
FLOOD_PROMPT_TOKENS = 32
FLOOD_OUTPUT_TOKENS = 32

LIGHT_PER_S = 10
LIGHT_PROMPT_TOKENS = 256
LIGHT_OUTPUT_TOKENS = 8
LIGHT_REQUESTS = 150

# How the server treats the flood.
SETTINGS = {
    "fcfs": {"scheduling_policy": "fcfs"},
    "vtc": {},
    "vtc, max_concurrency 2": {"tenants": {"flood": {"max_concurrency": 2}}},
}


def run(*, threads, rounds):
    """Return the table. Alone and flooded take turns, and each round has ratios of its own."""
    rows = []
    for name, options in SETTINGS.items():
        alone, flooded = [], []  # (median, 99th percentile) of each round
        with serve(models.DEMO, {}, threads=threads, max_num_seqs=64, **options) as server:
            _ask(server)
            for _ in range(rounds):
                alone.append(_quantiles(_ask(server)))
                with _flood(server):
                    flooded.append(_quantiles(_ask(server)))
        rows.append((name, *_cells(alone), *_cells(flooded), *_ratios(alone, flooded)))
    header = (
        "medians of rounds", "alone: median", "p99", "flooded: median", "p99", "median ratio",
        "p99 ratio",
    )  # fmt: skip
    return markdown(header, rows)


def _quantiles(times):
    return statistics.median(times), statistics.quantiles(times, n=100)[-1]


def _cells(rounds):
    return [f"{statistics.median(values) * 1e3:.1f}" for values in zip(*rounds, strict=True)]


def _ratios(alone, flooded):
    by_round = [
        [with_flood / without for without, with_flood in zip(before, beside, strict=True)]
        for before, beside in zip(alone, flooded, strict=True)
    ]
    return [f"{statistics.median(values):.2f}" for values in zip(*by_round, strict=True)]


def _ask(server):
    """Send requests at a steady rate as one tenant; return their seconds to the first token."""

    async def one(client, start):
        await asyncio.sleep(start - time.perf_counter())
        prompt = [random.randrange(4, 400) for _ in range(LIGHT_PROMPT_TOKENS)]
        started, first = time.perf_counter(), None
        async for event in client.generate(
            prompt=prompt, tenant="light", temperature=0, ignore_eos=True,
            max_tokens=LIGHT_OUTPUT_TOKENS, skip_special_tokens=False,
        ):  # fmt: skip
            if first is None and isinstance(event, Text):
                first = time.perf_counter() - started
        return first

    async def work():
        async with await AsyncClient.connect(server.run_dir) as client:
            now = time.perf_counter()
            starts = [now + number / LIGHT_PER_S for number in range(LIGHT_REQUESTS)]
            return await asyncio.gather(*(one(client, start) for start in starts))

    return asyncio.run(work())


@contextmanager
def _flood(server):
    """Let another process flood the server, as another tenant."""
    command = [sys.executable, "-m", "tests.bench.tenants", str(server.run_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as flood:
        try:
            assert flood.stdout.readline() == "flooding\n"
            time.sleep(1.0)
            yield
        finally:
            flood.kill()


async def _send(client):
    prompt = [random.randrange(4, 400) for _ in range(FLOOD_PROMPT_TOKENS)]
    try:
        async for _ in client.generate(
            prompt=prompt, tenant="flood", temperature=0, ignore_eos=True,
            max_tokens=FLOOD_OUTPUT_TOKENS,
        ):  # fmt: skip
            pass
    except Refused:
        pass


async def _send_all(run_dir):
    async with await AsyncClient.connect(run_dir) as client:
        print("flooding", flush=True)
        tasks = set()
        due = time.perf_counter()
        while True:
            due += 1 / FLOOD_PER_S
            task = asyncio.create_task(_send(client))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))


if __name__ == "__main__":
    asyncio.run(_send_all(sys.argv[1]))
