"""What an adapter that has to be read first costs: its own first token, and others' next ones."""

import asyncio
import random
import statistics
import tempfile
import time
from itertools import cycle, pairwise
from pathlib import Path
from typing import NamedTuple

from tests.bench.load import VOCABULARY
from tests.bench.many import catalogue, client, paper
from tests.bench.many.client import Question
from tests.bench.serving import serve
from tests.bench.table import markdown
from weft.runtime.client import AsyncClient

STREAMS = 8  # that decode all the time, each with an adapter of its own
LOADED = 16  # adapters that there is a place for
PROBES = 4  # that are warm

# Every probe of a cold adapter comes when so many others have been loaded since: it is in nobody's
# memory any more, neither the device's nor the host's.
COLD = 4 * LOADED


class Plan(NamedTuple):
    """What is measured of a shape."""

    probes: int  # of each kind, in a round
    pause_s: float  # between two probes
    prompt_tokens: int
    probe_tokens: int
    stream_tokens: int


_TINY = Plan(100, 0.02, 8, 2, 300)
PLANS = {"tiny": _TINY, "tiny-qv": _TINY, "0.5b": Plan(12, 0.5, 8, 2, 300)}


class Kind(NamedTuple):
    """What is asked beside the streams, and what came of it: seconds."""

    firsts: list[float]
    gaps: list[float]


def run(shape, *, rounds, threads):
    """Return the table; rounds of all kinds of probes take turns."""
    plan = PLANS[shape]
    found = {name: Kind([], []) for name in ("none", "warm", "cold")}
    with tempfile.TemporaryDirectory() as place:
        made = catalogue.make(shape, Path(place), STREAMS + PROBES + COLD)
        names = list(made.adapters)
        streams, warm = names[:STREAMS], cycle(names[STREAMS : STREAMS + PROBES])
        asked = {"none": None, "warm": warm, "cold": cycle(names[STREAMS + PROBES :])}
        pages = paper.device_pages(made, names[: 2 * LOADED])
        with serve(
            made.model, made.adapters, threads=threads,
            max_loaded_loras=LOADED, max_cpu_loras=LOADED,
            max_loras_per_batch=LOADED, max_num_seqs=STREAMS + PROBES,
            kv_cache_memory_mib=pages * paper.page_bytes(made) // 2**20 + 256,
        ) as server:  # fmt: skip
            asyncio.run(_measure(server, plan, streams, asked, found, rounds))
    return _table(found)


async def _measure(server, plan, streams, asked, found, rounds):
    rng = random.Random(0)

    def question(name, tokens):
        prompt = [rng.randrange(4, VOCABULARY) for _ in range(plan.prompt_tokens)]
        return Question(name, prompt, tokens)

    async with await AsyncClient.connect(server.run_dir) as asker:
        for number in range(rounds + 1):
            for kind, names in asked.items():
                stop = asyncio.Event()
                flows = [
                    asyncio.create_task(_flow(asker, name, question, plan.stream_tokens, stop))
                    for name in streams
                ]
                await asyncio.sleep(4 * plan.pause_s)
                firsts = []
                for _ in range(plan.probes):
                    await asyncio.sleep(plan.pause_s)
                    if names is not None:
                        probe = question(next(names), plan.probe_tokens)
                        firsts.append((await client.answer(asker, probe)).times[0])
                stop.set()
                gaps = [gap for flow in flows for gap in await flow]
                if number:  # the first is for warming up
                    found[kind].firsts.extend(firsts)
                    found[kind].gaps.extend(gaps)


async def _flow(asker, name, make, tokens, stop):
    """Decode until told to stop; return the seconds between two pieces of text."""
    gaps = []
    while not stop.is_set():
        question = make(name, tokens)
        times = []
        started = time.perf_counter()
        async with asker.generate(
            prompt=question.prompt, model=question.model, max_tokens=question.tokens,
            temperature=0, ignore_eos=True, skip_special_tokens=False,
        ) as stream:  # fmt: skip
            async for _ in stream:
                times.append(time.perf_counter() - started)
                if stop.is_set():
                    break
        gaps += [later - earlier for earlier, later in pairwise(times[2:-1])]
    return gaps


def _table(found):
    base = _percentile(found["warm"].gaps)
    rows = [
        (
            name,
            len(kind.firsts),
            f"{statistics.median(kind.firsts) * 1e3:.1f}" if kind.firsts else "",
            f"{_percentile(kind.firsts) * 1e3:.1f}" if kind.firsts else "",
            f"{statistics.median(kind.gaps) * 1e3:.1f}",
            f"{_percentile(kind.gaps) * 1e3:.1f}",
            f"{_percentile(kind.gaps) / base:.2f}",
        )
        for name, kind in found.items()
    ]
    header = (
        "asked beside 8 streams", "probes", "first token, ms", "99th percentile",
        "streams' next token, ms", "99th percentile", "/ beside warm ones",
    )  # fmt: skip
    return markdown(header, rows)


def _percentile(values):
    return statistics.quantiles(values, n=100)[-1]
