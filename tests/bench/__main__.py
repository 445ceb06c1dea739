"""`python -m tests.bench [SECTION ...]`: measure, and print tables. `--help` lists the sections."""

import logging
import os
import platform
import sys
import time
import warnings
from pathlib import Path

import torch
import transformers

from tests.bench import latency, log_lines, options, steps, throughput
from tests.bench.gpu import decode, device, sweep
from tests.bench.load import Load
from tests.bench.peers import compare


def main():
    told = options.parse()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(_machine(told), end="\n\n", flush=True)
    for section in told.sections:
        for title, table in _tables(section, told):
            print(f"{title}\n\n{table}\n", flush=True)


def _tables(section, told):
    """Yield what a section measures: a title and a table each."""
    threads, rounds = told.threads, told.rounds
    load = Load(told.requests, told.prompt_tokens, told.output_tokens)
    what = f"{load.requests} requests at once, {load.prompt_tokens} tokens in and"
    what += f" {load.output_tokens} out each, {rounds} rounds"
    match section:
        case "throughput":
            for shape in told.shapes:
                yield (
                    f"Output tokens a second, {shape}: {what}",
                    throughput.run(shape, load, rounds=rounds, threads=threads),
                )
        case "latency":
            for shape in told.shapes:
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
            yield from _peers(told, load, what)
        case "kernels":
            yield from _kernels(told)
        case "decode":
            yield from _decode(told)


def _peers(told, load, what):
    for shape in told.shapes:
        for dtype in told.dtypes:
            yield (
                f"Output tokens a second, best round, {shape}, {dtype}: {what}",
                compare.run(
                    shape, load, engines=told.engines, dtype=dtype, rounds=told.rounds,
                    threads=told.threads, peers=told.peers.expanduser().resolve(),
                ),
            )  # fmt: skip


def _kernels(told):
    todo = sweep.cases(told.tokens, told.adapters, told.distributions)
    for name in told.models:
        results = sweep.run(name, todo)
        notes = [*results.notes, *sweep.draw(name, results, told.plots)]
        yield (
            f"LoRA of a layer, {name}, {device.name(device.find())}: copies "
            f"{results.copy_rate / 1e9:.0f} GB/s, multiplies "
            f"{results.matrix_rate / 1e12:.0f} TFLOP/s in bfloat16",
            "\n\n".join([sweep.table(results), *notes]),
        )


def _decode(told):
    batches = decode.pairs(told.rows, told.row_adapters)
    for name in told.checkpoints:
        yield (
            f"A decode step of a random {name}, adapters of ranks 8 to 64: median of {told.steps}",
            decode.run(name, batches, steps=told.steps, device=told.device),
        )


def _machine(told):
    cores, date = len(os.sched_getaffinity(0)), time.strftime("%Y-%m-%d")
    return (
        f"{_processor()}, {cores} cores, {told.threads} threads, torch {torch.__version__}, "
        f"{date}: python -m tests.bench {' '.join(sys.argv[1:])}"
    )


def _processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.processor()


if __name__ == "__main__":
    main()
