"""`python -m tests.bench [SECTION ...]`: measure, and print tables. `--help` lists the sections."""

import logging
import os
import platform
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
import transformers

from tests.bench import (
    accuracy,
    kernels,
    latency,
    log_lines,
    mixed,
    pool,
    ranks,
    recovery,
    replicas,
    steps,
    tenants,
    throughput,
)
from tests.bench.gpu import decode, device, sweep
from tests.bench.load import Load
from tests.bench.many import cold, curve
from tests.bench.options import parse
from tests.bench.peers import compare


def main():
    options = parse()
    # As an exception, so that servers under measurement are stopped.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(_machine(options), end="\n\n", flush=True)
    for section in options.sections:
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
            yield from _steps(options)
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
            yield from _kernels(options)
        case "accuracy":
            yield from _accuracy(options)
        case "pool":
            yield from pool.tables()
        case "replicas":
            yield (
                f"{replicas.REQUESTS} requests for {replicas.CATALOGUE} adapters, of which a "
                f"device holds {replicas.DEVICE_ADAPTERS}: counted, without a model",
                replicas.adapters_table(),
            )
            yield (
                f"{replicas.REQUESTS} requests for the base, whose prompts begin with one of "
                f"{replicas.BEGINNINGS} times {replicas.BEGINNING_TOKENS} tokens: counted",
                replicas.beginnings_table(),
            )
        case "adapters":
            yield from _adapters(options)
        case "tenants":
            yield (
                "Milliseconds to the first token of a tenant that asks now and then, alone and "
                f"beside one that sends {tenants.FLOOD_PER_S} requests a second",
                tenants.run(threads=threads, rounds=rounds),
            )
        case "recovery":
            yield from _recovery(options)
        case "peers":
            yield from _peers(options, load, what)
        case "lora":
            yield from _lora(options)
        case "decode":
            yield from _decode(options)


def _steps(options):
    yield "The scheduler's part of a steady decode step", steps.scheduler_table()
    yield (
        f"A decode step of {steps.BACKLOG_ROWS} rows while others wait that cannot start, "
        "microseconds by scheduling_policy",
        steps.backlog_table(),
    )
    yield (
        "A step of the running demonstration: what is not the model's computing",
        steps.share_table(threads=options.threads),
    )
    yield (
        f"A decode step of {mixed.ROWS} rows of the demonstration by what one of them has: "
        f"median of {options.rounds} rounds",
        mixed.run(rounds=options.rounds, threads=options.threads),
    )


def _kernels(options):
    for shape in options.layers:
        yield (
            f"The projections of a layer, {shape}: best of {options.rounds} rounds",
            kernels.linear_table(
                shape, weights=options.weights, rounds=options.rounds, threads=options.threads
            ),
        )


def _accuracy(options):
    for large in accuracy.LARGE:
        yield (
            f"The demonstration with rounded linear layers, {accuracy.LARGE_CHANNELS} channels "
            f"{large} times as large",
            accuracy.run(large=large, threads=options.threads),
        )
    yield (
        f"{accuracy.PROMPTS} held-out prompts of each task, all at once",
        accuracy.answers(threads=options.threads),
    )


def _adapters(options):
    rounds, threads = options.rounds, options.threads
    for name in options.catalogues:
        requests = options.zipf_requests // (4 if name == "0.5b" else 1)
        yield from curve.run(
            name, requests=requests, rounds=rounds, threads=threads, plots=options.plots
        )
        yield (
            f"Cold adapters, {name}: milliseconds beside {cold.STREAMS} streams",
            cold.run(name, rounds=rounds, threads=threads),
        )


def _recovery(options):
    rounds, threads = options.rounds, options.threads
    for shape in options.shapes:
        yield (
            f"Seconds after kill -9 of a runner amid {recovery.STREAMS} streams, {shape}: "
            f"median of {rounds}",
            recovery.run(shape, rounds=rounds, threads=threads),
        )
        yield (
            f"Seconds, kill -9 of one of two replicas amid {recovery.STREAMS} streams, "
            f"{shape}: median of {rounds}",
            recovery.run_replicas(shape, rounds=rounds, threads=threads),
        )


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


def _lora(options):
    todo = sweep.cases(options.tokens, options.adapters, options.distributions)
    for name in options.models:
        results = sweep.run(name, todo)
        notes = [*results.notes, *sweep.draw(name, results, options.plots)]
        yield (
            f"LoRA of a layer, {name}, {device.name(device.find())}: copies "
            f"{results.copy_rate / 1e9:.0f} GB/s, multiplies "
            f"{results.matrix_rate / 1e12:.0f} TFLOP/s in bfloat16",
            "\n\n".join([sweep.table(results), *notes]),
        )


def _decode(options):
    batches = decode.pairs(options.rows, options.row_adapters)
    for name in options.checkpoints:
        yield (
            f"A decode step, {name}, adapters of ranks 8 to 64: median of {options.steps} steps",
            decode.run(name, batches, steps=options.steps, device=options.device),
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
