"""`python -m tests.bench [SECTION ...]`: measure, and print tables. `--help` lists the sections."""

import argparse
import logging
import os
import platform
import warnings
from pathlib import Path

import torch
import transformers

from tests.bench import latency, steps, throughput
from tests.bench.models import SHAPES
from tests.bench.throughput import Load

SECTIONS = ("throughput", "latency", "steps")


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
    print(f"{_processor()}, {options.threads} threads, torch {torch.__version__}\n", flush=True)
    if "throughput" in sections:
        for shape in options.shapes:
            load = Load(options.requests, options.prompt_tokens, options.output_tokens)
            print(f"Output tokens a second, {shape}: {load.requests} requests at once,")
            print(f"{load.prompt_tokens} tokens in, {load.output_tokens} out each\n", flush=True)
            table = throughput.run(shape, load, rounds=options.rounds, threads=options.threads)
            print(table, end="\n\n", flush=True)
    if "latency" in sections:
        for shape in options.shapes:
            print(f"Milliseconds, {shape}, 4 adapters: median (95th percentile)\n")
            print(latency.run(shape, threads=options.threads), end="\n\n", flush=True)
    if "steps" in sections:
        print("The scheduler's part of a steady decode step\n")
        print(steps.scheduler_table(), end="\n\n", flush=True)
        print("A step of the running demonstration: what is not the model's computing\n")
        print(steps.share_table(threads=options.threads), flush=True)


def _processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.processor()


if __name__ == "__main__":
    main()
