"""What splitting a model over processes costs and gives: one all-reduce, and whole runs.

``python -m tests.bench.ranks KIND FOLDER RANK SIZE THREADS`` is one rank of the first.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from tests.bench import models
from tests.bench.load import make_prompts
from tests.bench.serving import generate, serve
from tests.bench.table import markdown
from weft.kernels.collectives import process_group, shared_memory
from weft.runtime.child import OMP_SPINS

KINDS = ("gloo", "shared memory")
ROWS = (1, 8, 32, 64, 512)
HIDDEN = 896  # of the half billion
SIZES = (2, 4)
REPEATS = 400
WARM_UP = 50
TIMEOUT_S = 300.0

# Of whole runs: adapters, and ranks that the model's heads divide by.
ADAPTERS = (0, 16)
RUN_SIZES = {"demo": (1, 2, 4), "0.5b": (1, 2)}


def all_reduce_table(*, threads):
    """Return the microseconds of one all-reduce of [rows, HIDDEN] float32 on rank 0."""
    taken = {
        (size, kind): _measure(kind, size, max(1, threads // size))
        for size in SIZES
        for kind in KINDS
    }
    rows = [
        (
            count,
            *(
                f"{min(times):.0f} ({statistics.median(times):.0f})"
                for size in SIZES
                for kind in KINDS
                for times in [taken[size, kind][str(count)]]
            ),
        )
        for count in ROWS
    ]
    header = ("rows", *(f"{size} ranks, {kind}" for size in SIZES for kind in KINDS))
    return markdown(header, rows)


def _measure(kind, size, threads):
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "tests.bench.ranks", kind, place]
        ranks = [
            subprocess.Popen(
                [*command, str(rank), str(size), str(threads)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": OMP_SPINS},
            )
            for rank in range(size)
        ]
        said = [rank.communicate(timeout=TIMEOUT_S)[0] for rank in ranks]
    return json.loads(said[0])


def _be_a_rank(kind, folder, rank, size, threads):
    torch.set_num_threads(threads)
    if kind == "gloo":
        device = torch.device("cpu")
        group = process_group.join(folder, rank, size, device=device, timeout_s=TIMEOUT_S)
    else:
        group = shared_memory.join(folder, rank, size, timeout_s=TIMEOUT_S)
    taken = {}
    for rows in ROWS:
        x = torch.zeros(rows, HIDDEN)
        times = []
        for _ in range(WARM_UP + REPEATS):
            started = time.perf_counter()
            group.all_reduce(x)
            times.append((time.perf_counter() - started) * 1e6)
        taken[rows] = times[WARM_UP:]
    if rank == 0:
        print(json.dumps(taken))


def throughput_table(shape, load, *, rounds, threads):
    """Return output tokens a second of the same cores in one, two or four runners.

    All servers live at the same time and are asked in turns: medians, then medians of each round's
    ratio to a single runner.
    """
    sizes = RUN_SIZES[shape]
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        place = Path(place)
        folder = models.model_folder(shape, place, torch.float32)
        folders = models.adapter_folders(folder, place, max(ADAPTERS))
        servers = {}
        for size in sizes:
            options = {"threads": threads // size, "kv_cache_memory_mib": 3072}
            served = serve(folder, folders, tensor_parallel_size=size, **options)
            servers[size] = stack.enter_context(served)
            generate(servers[size], make_prompts(load, list(folders)), tokens=4)
        speeds = [
            {
                (size, count): _speed(servers[size], list(folders)[:count], load)
                for count in ADAPTERS
                for size in sizes
            }
            for _ in range(rounds)
        ]
    rows = []
    for count in ADAPTERS:
        speed = [statistics.median(r[size, count] for r in speeds) for size in sizes]
        ratio = [
            statistics.median(r[size, count] / r[1, count] for r in speeds) for size in sizes[1:]
        ]
        rows.append((count, *(f"{v:.0f}" for v in speed), *(f"{v:.2f}" for v in ratio)))
    header = (
        "adapters", *(f"{size} x {threads // size} threads" for size in sizes),
        *(f"{size} runners / 1" for size in sizes[1:]),
    )  # fmt: skip
    return markdown(header, rows)


def _speed(server, names, load):
    prompts = make_prompts(load, names)
    started = time.perf_counter()
    generate(server, prompts, tokens=load.output_tokens)
    return load.requests * load.output_tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    _be_a_rank(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
