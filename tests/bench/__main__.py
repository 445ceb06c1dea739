"""`python -m tests.bench [SECTION ...]`: measure, and print tables. `--help` lists the sections."""

import argparse
import logging
import os
import platform
import sys
import time
import warnings
from pathlib import Path

import torch
import transformers

from tests.bench import latency, log_lines, steps, throughput
from tests.bench.load import Load
from tests.bench.models import SHAPES
from tests.bench.peers import compare
from tests.bench.peers.install import FOLDER

SECTIONS = ("throughput", "latency", "steps", "logging")
OTHERS = ("peers",)  # need more than this project, or another machine


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    named = f"of {', '.join(SECTIONS)} (all by default), {', '.join(OTHERS)}"
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=named)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, choices=SHAPES)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    group = parser.add_argument_group("peers")
    group.add_argument("--engines", nargs="+", default=compare.ENGINES, choices=compare.ENGINES)
    group.add_argument("--dtypes", nargs="+", default=["float32"], choices=compare.DTYPES)
    group.add_argument("--peers", type=Path, default=FOLDER, help="where `make peers` put them")
    options = parser.parse_args()
    sections = options.sections or SECTIONS
    if unknown := set(sections) - {*SECTIONS, *OTHERS}:
        parser.error(f"no section is called {unknown.pop()}; there are {', '.join(SECTIONS)}")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(_machine(options), end="\n\n", flush=True)
    for section in sections:
        for title, table in _tables(section, options):
            print(f"{title}\n\n{table}\n", flush=True)


def _tables(section, options):
    """Yield what a section measures: a title and a table each."""
    threads, rounds = options.threads, options.rounds
    load = Load(options.requests, options.prompt_tokens, options.output_tokens)
    what = f"{load.requests} requests at once, {load.prompt_tokens} tokens in and"
    what += f" {load.output_tokens} out each, {rounds} rounds"
    match section:
        case "throughput":
            for shape in options.shapes:
                yield (
                    f"Output tokens a second, {shape}: {what}",
                    throughput.run(shape, load, rounds=rounds, threads=threads),
                )
        case "latency":
            for shape in options.shapes:
                yield (
                    f"Milliseconds, {shape}, 4 adapters: median (95th percentile)",
                    latency.run(shape, threads=threads),
                )
        case "steps":
            yield "The scheduler's part of a steady decode step", steps.scheduler_table()
            yield (
                "A step of the running demonstration: what is not the model's computing",
                steps.share_table(threads=threads),
            )
        case "logging":
            yield (
                f"Requests a second of the demonstration by log_level: {what}",
                log_lines.run(load, rounds=rounds, threads=threads),
            )
        case "peers":
            yield from _peers(options, load, what)


def _peers(options, load, what):
    for shape in options.shapes:
        for dtype in options.dtypes:
            yield (
                f"Output tokens a second, best round, {shape}, {dtype}: {what}",
                compare.run(
                    shape, load, engines=options.engines, dtype=dtype, rounds=options.rounds,
                    threads=options.threads, peers=options.peers.expanduser().resolve(),
                ),
            )  # fmt: skip


def _machine(options):
    cores, date = len(os.sched_getaffinity(0)), time.strftime("%Y-%m-%d")
    return (
        f"{_processor()}, {cores} cores, {options.threads} threads, torch {torch.__version__}, "
        f"{date}: python -m tests.bench {' '.join(sys.argv[1:])}"
    )


def _processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.processor()


if __name__ == "__main__":
    main()
