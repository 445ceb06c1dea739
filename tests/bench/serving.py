"""A server under measurement: `weft serve` as a user starts it."""

import asyncio
import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import yaml

from weft.runtime.client import AsyncClient, Text


class Server(NamedTuple):
    """Where it is reached."""

    run_dir: Path
    url: str
    start_s: float  # until it was ready


@contextmanager
def serve(model, adapters, **options):
    """Serve until the block is left."""
    values = {
        "model": str(model),
        "served_model_name": "base",
        "adapters": {name: str(path) for name, path in adapters.items()},
        "max_loras_per_batch": max(8, len(adapters)),
        "log_level": "warning",
        "port": 0,
    }
    with (
        tempfile.NamedTemporaryFile("w", suffix=".yaml") as config,
        tempfile.TemporaryFile() as log,
    ):
        yaml.safe_dump(values | options, config)
        config.flush()
        command = [sys.executable, "-m", "weft", "serve", config.name]
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server:
            try:
                yield _wait(server, started)
            finally:
                server.terminate()
                server.stdout.close()


def _wait(server, started):
    url = run_dir = None
    for line in server.stdout:
        if found := re.match(r" +HTTP +(.+)/v1", line):
            url = found[1]
        if found := re.match(r" +ZeroMQ +(.+)", line):
            run_dir = Path(found[1])
        if " stop " in line:
            return Server(run_dir, url, time.perf_counter() - started)
    raise SystemExit("the server did not start; run it by hand to see why")


def generate(server, prompts, *, tokens, concurrency=None):
    """Answer (model, prompt) each with ``tokens`` tokens; return when each piece of text came.

    The result has one list of seconds for each prompt, from its sending on. ``concurrency`` limits
    how many are under way at once.
    """

    async def work():
        gate = asyncio.Semaphore(concurrency or len(prompts))
        async with await AsyncClient.connect(server.run_dir) as client:

            async def one(model, prompt):
                async with gate:
                    started, times = time.perf_counter(), []
                    async for event in client.generate(
                        prompt=prompt, model=model, temperature=0, ignore_eos=True,
                        max_tokens=tokens, skip_special_tokens=False,
                    ):  # fmt: skip
                        if isinstance(event, Text):
                            times.append(time.perf_counter() - started)
                    return times

            return await asyncio.gather(*(one(*each) for each in prompts))

    return asyncio.run(work())


def complete(server, prompts, *, tokens):
    """Return the text after each (model, prompt), of ``tokens`` tokens at most."""

    async def work():
        async with await AsyncClient.connect(server.run_dir) as client:

            async def one(model, prompt):
                told = client.generate(prompt=prompt, model=model, temperature=0, max_tokens=tokens)
                return "".join([event.text async for event in told if isinstance(event, Text)])

            return await asyncio.gather(*(one(*each) for each in prompts))

    return asyncio.run(work())
