"""Throughput by number of adapters, and that every answer is right."""

import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

from tests.bench.load import VOCABULARY
from tests.bench.many import catalogue, client, exact, paper
from tests.bench.many.client import Question
from tests.bench.serving import serve
from tests.bench.table import markdown

AT_ONCE = 64  # requests under way
MIB = 2**20


class Plan(NamedTuple):
    """What is measured of a shape."""

    counts: tuple[int, ...]  # of adapters that requests are drawn from
    prompt_tokens: int
    output_tokens: int
    kv_mib: int  # for KV beside the adapters
    sample: int  # answers that are checked
    is_small: bool  # a step is over before a second thread has woken up


_TINY = Plan((1, 10, 100, 500, 1000, 2000), 32, 32, 256, 200, is_small=True)
PLANS = {
    "tiny": _TINY,
    "tiny-qv": _TINY,
    "0.5b": Plan((1, 20, 200), 16, 16, 1024, 40, is_small=False),
}
POOLS = {"all fit": 1.0, "a quarter fits": 0.25}


def run(shape, *, requests, rounds, threads, plots):
    """Yield tables, with their titles."""
    plan = PLANS[shape]
    with tempfile.TemporaryDirectory() as place:
        made = catalogue.make(shape, Path(place), plan.counts[-1])
        speeds, told = {}, []
        for pool, share in POOLS.items():
            measured = _Measured(made, plan, share, requests, threads)
            with measured.serve() as server:
                speeds[pool] = measured.rounds(server, rounds)
                told.append((pool, *measured.facts(server)))
            torch.set_num_threads(1 if plan.is_small else threads)
            told[-1] += (measured.wrong(Path(place, pool)),)
    what = f"{shape}, {requests} requests, {AT_ONCE} at once, {plan.prompt_tokens} tokens in and"
    what += f" {plan.output_tokens} out, Zipf (alpha 1)"
    yield f"Output tokens a second by number of adapters: {what}", _table(plan, speeds)
    yield "Files, pages and answers of the same", markdown(FACTS, told)
    if note := _draw(shape, plan, speeds, plots):
        yield "As a picture", note


FACTS = (
    "pool", "seconds to start", "host files, MiB (paper)", "device pages (paper)",
    "runner's growth beyond its pages, MiB", "adapters loaded", "answers", "failed",
    "wrong of the sample",
)  # fmt: skip


class _Measured:
    """One server and what it has been asked."""

    def __init__(self, made, plan, share, requests, threads):
        self._made = made
        self._plan = plan
        self._requests = requests
        self._names = list(made.adapters)
        self._slots = max(AT_ONCE, round(len(self._names) * share))
        self._pages = paper.device_pages(made, self._names[: self._slots])
        self._threads = threads
        self._rng = random.Random(0)
        self._asked = []
        self._failed = 0
        self._resident = 0
        self.start_s = 0.0

    def serve(self):
        memory = self._pages * paper.page_bytes(self._made) // MIB + self._plan.kv_mib
        return serve(
            self._made.model, self._made.adapters, threads=self._threads,
            kv_cache_memory_mib=memory, max_loaded_loras=self._slots, max_cpu_loras=self._slots,
            max_loras_per_batch=AT_ONCE, max_num_seqs=AT_ONCE, enable_prefix_caching=False,
        )  # fmt: skip

    def rounds(self, server, rounds):
        """Return, for each round, tokens a second by number of adapters."""
        self.start_s = server.start_s
        self._ask(server, [None] * AT_ONCE)  # memory that does not belong to adapters is touched
        self._resident = paper.settled_bytes(server, "runner0")
        self._ask(server, self._names)  # from here on everything has been loaded once
        speeds = []
        for _ in range(rounds):
            speeds.append({})
            for count in self._plan.counts:
                chosen = catalogue.zipf(self._names[:count], self._requests, self._rng)
                speeds[-1][count] = self._ask(server, chosen)
            print(f"{self._slots} fit: {speeds[-1]}", file=sys.stderr, flush=True)
        return speeds

    def _ask(self, server, names):
        questions = [
            Question(name or "base", self._prompt(), self._plan.output_tokens) for name in names
        ]
        started = time.perf_counter()
        answers = client.ask(server, questions, at_once=AT_ONCE)
        elapsed = time.perf_counter() - started
        self._failed += sum(
            answer.error is not None or len(answer.tokens) != self._plan.output_tokens
            for answer in answers
        )
        self._asked += [
            pair for pair in zip(questions, answers, strict=True) if pair[0].model != "base"
        ]
        return round(len(names) * self._plan.output_tokens / elapsed)

    def _prompt(self):
        return [self._rng.randrange(4, VOCABULARY) for _ in range(self._plan.prompt_tokens)]

    def facts(self, server):
        """Return what the server holds, beside what arithmetic says."""
        counters = client.inspect(server)
        resident, pages = counters["scheduler"]["adapters_resident"], self._pages
        files = paper.file_bytes(self._made, self._names[: self._slots])
        growth = paper.resident_bytes(server, "runner0") - self._resident
        return (
            f"{self.start_s:.1f}",
            f"{paper.files_on_host(server) / MIB:.0f} ({files / MIB:.0f})",
            f"{counters['scheduler']['pages_adapters']:.0f} ({pages})",
            f"{growth / MIB:.0f}",
            f"{resident:.0f} on the device, {counters['adapters']['loaded']:.0f} on the host",
            len(self._asked),
            self._failed,
        )

    def wrong(self, place):
        """Return how many of a sample of the answers are wrong."""
        sample = self._rng.sample(self._asked, self._plan.sample)
        return f"{exact.wrong(self._made, place, sample)} of {len(sample)}"


def _table(plan, speeds):
    def middle(pool, value):
        return statistics.median(map(value, speeds[pool]))

    rows = [
        (
            count,
            *(f"{middle(pool, lambda r: r[count]):.0f}" for pool in speeds),  # noqa: B023
            *(f"{middle(pool, lambda r: r[count] / r[1]):.2f}" for pool in speeds),  # noqa: B023
        )
        for count in plan.counts
    ]
    header = ("adapters", *speeds, *(f"{pool} / one adapter" for pool in speeds))
    return markdown(header, rows)


def _draw(shape, plan, speeds, folder):
    """Draw the table, and return where; None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    figure, panel = pyplot.subplots(figsize=(6, 4))
    for pool, rounds in speeds.items():
        medians = [statistics.median(r[count] for r in rounds) for count in plan.counts]
        panel.plot(plan.counts, medians, marker="o", label=pool)
    panel.set(xscale="log", xlabel="adapters", ylabel="output tokens a second", ylim=0)
    panel.legend()
    path = folder / f"adapters-{shape}.png"
    figure.savefig(path, dpi=120)
    return str(path)
