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

from tests.bench import kernels, latency, log_lines, pool, ranks, steps, tenants, throughput
from tests.bench.models import SHAPES
from tests.bench.throughput import Load

SECTIONS = ("throughput", "latency", "steps", "logging", "kernels", "pool", "ranks", "tenants")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {SECTIONS}")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, choices=SHAPES)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    sections = options.sections or SECTIONS
    if unknown := set(sections) - set(SECTIONS):
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
                f"A decode step of {steps.BACKLOG_ROWS} rows while others wait that cannot start, "
                "microseconds by scheduling_policy",
                steps.backlog_table(),
            )
            yield (
                "A step of the running demonstration: what is not the model's computing",
                steps.share_table(threads=threads),
            )
        case "ranks":
            yield (
                f"Microseconds of one all-reduce, float32 [rows, {ranks.HIDDEN}]: best (median)",
                ranks.all_reduce_table(threads=threads),
            )
            for shape in options.shapes:
                yield (
                    f"Output tokens a second on {threads} cores by runners, {shape}: {what}",
                    ranks.throughput_table(shape, load, rounds=rounds, threads=threads),
                )
        case "logging":
            yield (
                f"Requests a second of the demonstration by log_level: {what}",
                log_lines.run(load, rounds=rounds, threads=threads),
            )
        case "kernels":
            for shape in options.shapes:
                yield (
                    f"The projections of a layer, {shape}: best of {rounds} rounds",
                    kernels.linear_table(shape, rounds=rounds, threads=threads),
                )
        case "pool":
            yield from pool.tables()
        case "tenants":
            yield (
                "Milliseconds to the first token of a tenant that asks now and then, alone and "
                f"beside one that sends {tenants.FLOOD_PER_S} requests a second",
                tenants.run(threads=threads, rounds=rounds),
            )


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
