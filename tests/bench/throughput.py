"""Output tokens a second with 0 to 16 adapters mixed, beside transformers with PEFT."""

import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from tests.bench import models
from tests.bench.load import make_prompts
from tests.bench.peers import transformers_peft
from tests.bench.serving import generate, serve
from tests.bench.table import markdown

ADAPTERS = (0, 1, 4, 16)
PEFT_DTYPES = ("float32", "bfloat16")


def run(shape, load, *, rounds, threads):
    """Measure everything in turns, ``rounds`` times, and return the table.

    PEFT gets all requests in one batch of equal lengths, which is its best case, in float32 and in
    bfloat16. weft computes in float32. A column is the median of the rounds; a ratio is the median
    of each round's own ratios, so that a machine that is busier in some rounds changes little; but
    for one, of each engine's best round, since a busy machine costs who waits more than who works.
    """
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        folder = models.model_folder(shape, place, torch.float32)
        folders = models.adapter_folders(folder, place, max(ADAPTERS))
        peft = {d: transformers_peft.load(folder, folders, d) for d in PEFT_DTYPES}
        with ExitStack() as stack:
            options = {"threads": threads, "kv_cache_memory_mib": 1024}
            server = stack.enter_context(serve(folder, folders, **options))
            # Adapters are loaded, and memory is touched, before anything is timed.
            generate(server, make_prompts(load, list(folders)), tokens=4)
            speeds = [_round(server, peft, list(folders), load) for _ in range(rounds)]
    return _table(speeds)


def _round(server, peft, names, load):
    """Return tokens a second by number of adapters and engine."""
    speeds = {}
    for count in ADAPTERS:
        prompts = make_prompts(load, names[:count])
        started = time.perf_counter()
        generate(server, prompts, tokens=load.output_tokens)
        seconds = {"weft": time.perf_counter() - started}
        for dtype, engines in peft.items():
            started = time.perf_counter()
            transformers_peft.generate(engines, prompts, load.output_tokens)
            seconds[dtype] = time.perf_counter() - started
        tokens = load.requests * load.output_tokens
        speeds[count] = {engine: tokens / seconds[engine] for engine in seconds}
        told = ", ".join(f"{engine} {speed:.0f}" for engine, speed in speeds[count].items())
        print(f"{count} adapters: {told}", file=sys.stderr, flush=True)
    return speeds


def _table(speeds):
    def middle(value):
        return statistics.median(map(value, speeds))

    def best(count, *engines):
        return max(speed[count][engine] for speed in speeds for engine in engines)

    rows = [
        (
            count,
            *(f"{middle(lambda r: r[count][e]):.0f}" for e in ("weft", *PEFT_DTYPES)),  # noqa: B023
            *(
                f"{middle(lambda r: r[count]['weft'] / r[count][dtype]):.2f}"  # noqa: B023
                for dtype in PEFT_DTYPES
            ),
            f"{best(count, 'weft') / best(count, *PEFT_DTYPES):.2f}",
            f"{middle(lambda r: r[count]['weft'] / r[0]['weft']):.2f}",  # noqa: B023
        )
        for count in ADAPTERS
    ]
    header = (
        "adapters", "weft", "PEFT float32", "PEFT bfloat16", "weft / PEFT float32",
        "weft / PEFT bfloat16", "best weft / best PEFT", "weft / weft without",
    )  # fmt: skip
    return markdown(header, rows)
