"""Ranks of a group that do things together, as threads or as processes of their own.

``python -m tests.kernels.collective_ranks KIND FOLDER RANK SIZE SCENARIO`` is one process.
"""

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from weft.kernels.collectives import process_group, reference, shared_memory
from weft.kernels.collectives.reference import RankLost

# Whatever is to be noticed sooner than this is not noticed by waiting for it.
PATIENCE_S = 60.0


def join(kind, folder, rank, size, timeout_s=PATIENCE_S):
    if kind == "shared memory":
        return shared_memory.join(folder, rank, size, timeout_s=timeout_s)
    device = torch.device("cpu")
    return process_group.join(folder, rank, size, device=device, timeout_s=timeout_s)


def second(kind, folder, group):
    """Another group of the same ranks."""
    if kind == "shared memory":
        return shared_memory.join(
            folder, group.rank, group.size, timeout_s=PATIENCE_S, name="second"
        )
    return group.on_host(PATIENCE_S)


def in_threads(folder, size, work, **options):
    """What ``work`` returns for each rank's end of a group."""

    def one(rank):
        return work(join("shared memory", folder, rank, size, **options))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def start_processes(kind, folder, size, scenario):
    module = "tests.kernels.collective_ranks"
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, kind, str(folder), str(rank), str(size), scenario],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def ends(processes):
    """What each process said, and how it ended."""
    said = []
    for process in processes:
        out, error = process.communicate(timeout=PATIENCE_S)
        assert process.returncode in (0, -signal.SIGKILL), error
        said.append((process.returncode, out.strip()))
    return said


def parts_of(rng, size, *, of=torch.float32):
    """One tensor for each rank, most of them small and some larger than a slot."""
    rows = rng.choice([1, 1, 2, 5, 32])
    columns = rng.choice([1, 3, 64, 1023, 8193])
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    if of == torch.int64:
        return [torch.randint(2**40, (rows,), generator=generator) for _ in range(size)]
    return [torch.randn(rows, columns, generator=generator) for _ in range(size)]


def play(group, *, seed, rounds, exact=True):
    """Do random things, now and then late; assert that each gives what it must."""
    rng, own = random.Random(seed), random.Random(f"{seed} {group.rank}")
    for number in range(rounds):
        if own.random() < 0.1:
            time.sleep(own.choice([0.0, 0.0003, 0.003]))
        what = rng.choice(["all_reduce", "all_reduce", "gather", "broadcast"])
        parts = parts_of(rng, group.size, of=torch.int64 if what == "broadcast" else torch.float32)
        mine = parts[group.rank].clone()
        where = f"seed {seed}, number {number}, {what} of {tuple(mine.shape)}, rank {group.rank}"
        if what == "all_reduce":
            group.all_reduce(mine)
            tolerance = {} if exact else {"rtol": 1e-5, "atol": 1e-5}
            torch.testing.assert_close(
                mine,
                reference.all_reduce(parts),
                **(tolerance or {"rtol": 0, "atol": 0}),
                msg=where,
            )
        elif what == "gather":
            gathered = group.gather(mine)
            assert (gathered is None) == (group.rank > 0), where
            assert gathered is None or gathered.equal(reference.gather(parts)), where
        else:
            group.broadcast(mine)
            assert mine.equal(parts[0]), where


def main():
    kind, folder, rank, size, scenario = sys.argv[1:]
    torch.set_num_threads(1)
    group = join(kind, Path(folder), int(rank), int(size))
    match scenario:
        case "play":
            play(group, seed=5, rounds=300, exact=kind == "shared memory")
            print("done")
        case "two":  # groups at once, a thread in each
            others = second(kind, Path(folder), group)
            with ThreadPoolExecutor(2) as pool:
                plays = [
                    pool.submit(play, each, seed=seed, rounds=200, exact=kind == "shared memory")
                    for seed, each in enumerate((group, others))
                ]
                for each in plays:
                    each.result()
            print("done")
        case "die":  # rank 1 does, in the middle of it all
            x = torch.ones(1000)
            try:
                for number in range(10**9):
                    if group.rank == 1 and number == 50:
                        os.kill(os.getpid(), signal.SIGKILL)
                    group.all_reduce(x)
                    x /= group.size
            except RankLost as error:
                print(error)
        case "leave":  # rank 0 does, once it has said something that nobody has heard yet
            if group.rank:
                time.sleep(1.0)
            x = torch.tensor([7 - 7 * group.rank])
            group.broadcast(x)
            print(int(x))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
