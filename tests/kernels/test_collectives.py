"""Collectives: every rank gets what the reference says, and none waits for ever."""

import ctypes
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.kernels.collective_ranks import (
    ends,
    in_threads,
    join,
    parts_of,
    play,
    start_processes,
)
from weft.kernels.collectives import shared_memory
from weft.kernels.collectives.reference import Alone, RankLost, all_reduce

needs_a_compiler = pytest.mark.skipif(
    shared_memory.library() is None, reason="there is no C compiler"
)


@needs_a_compiler
@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_random_collectives_of_ranks_that_are_late_now_and_then(tmp_path, size):
    in_threads(tmp_path, size, lambda group: play(group, seed=size, rounds=120))


@needs_a_compiler
@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 131072, 131073, 500_000])
def test_every_rank_gets_the_sum_in_the_order_of_the_ranks_bit_for_bit(tmp_path, count):
    generator = torch.Generator().manual_seed(count)
    parts = [torch.randn(count, generator=generator) * 10.0 ** (3 * rank) for rank in range(4)]
    parts[0][::7] = -0.0

    def work(group):
        x = parts[group.rank].clone()
        group.all_reduce(x)
        return x

    expected = all_reduce(parts)
    for got in in_threads(tmp_path, 4, work):
        assert got.view(torch.int32).equal(expected.view(torch.int32))


@needs_a_compiler
def test_a_sum_that_is_not_finite_is_so_on_every_rank(tmp_path):
    def work(group):
        x = torch.ones(2000)
        x[10], x[20] = float("inf"), float("inf") if group.rank else float("-inf")
        x[30] = float("nan") if group.rank == 1 else 1.0
        group.all_reduce(x)
        return x

    for got in in_threads(tmp_path, 2, work):
        assert got[10] == float("inf")
        assert got[20].isnan()
        assert got[30].isnan()
        assert got.isfinite().sum() == 1997


@needs_a_compiler
def test_numbers_of_collectives_wrap_around(tmp_path):
    groups = in_threads(tmp_path, 2, lambda group: group)
    for group in groups:  # as after four thousand million collectives
        group._group.number = 2**32 - 3
        line = ctypes.c_uint32.from_address(groups[0]._group.memory + 128 * group.rank)
        line.value = 2**32 - 3
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(play, group, seed=1, rounds=12) for group in groups]:
            done.result()
    assert groups[0]._group.number < 100


@needs_a_compiler
def test_a_rank_that_does_not_come_is_named(tmp_path):
    others = threading.Barrier(2)

    def work(group):
        if group.rank == 1:
            return None
        group._group.timeout_ms = 1000  # which was longer, for all to find each other
        others.wait()
        with pytest.raises(RankLost, match=r"rank 1 \(process \d+\) did not come within"):
            group.all_reduce(torch.ones(4))
        return group.rank

    assert in_threads(tmp_path, 3, work) == [0, None, 2]


@needs_a_compiler
def test_a_group_that_does_not_gather_is_given_up(tmp_path):
    with pytest.raises(RankLost, match="rank 1 did not come within"):
        join("shared memory", tmp_path, 0, 2, timeout_s=0.1)
    with pytest.raises(RankLost, match="rank 0 did not come within"):
        join("shared memory", tmp_path / "other", 1, 2, timeout_s=0.1)


@needs_a_compiler
def test_the_memory_is_private_and_its_file_is_gone_once_all_have_it(tmp_path):
    seen = []

    def first():
        seen.append(join("shared memory", tmp_path, 0, 2))

    thread = threading.Thread(target=first)
    thread.start()
    while not (files := list(tmp_path.glob("collectives"))):
        thread.join(0.001)
    assert files[0].stat().st_mode & 0o777 == 0o600
    join("shared memory", tmp_path, 1, 2)
    thread.join()
    assert not list(tmp_path.iterdir())
    assert seen[0].rank == 0


@pytest.mark.slow
@needs_a_compiler
@pytest.mark.parametrize("size", [2, 4])
def test_processes_do_what_threads_do(tmp_path, size):
    assert ends(start_processes("shared memory", tmp_path, size, "play")) == [(0, "done")] * size
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_torch_distributed_does_the_same(tmp_path):
    assert ends(start_processes("gloo", tmp_path, 2, "play")) == [(0, "done")] * 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("shared memory", marks=needs_a_compiler), "gloo"])
def test_a_rank_that_is_killed_is_noticed_by_all_others_and_named(tmp_path, kind):
    processes = start_processes(kind, tmp_path, 3, "die")
    pid = processes[1].pid
    first, killed, last = ends(processes)
    assert killed == (-signal.SIGKILL, "")
    if kind == "gloo":  # a rank may only see that another one has already given up
        assert f"rank 1 (process {pid}) has ended" in first[1] + last[1]
    else:
        assert first == last == (0, f"rank 1 (process {pid}) has ended")


@pytest.mark.slow
@needs_a_compiler
def test_what_a_rank_said_before_it_left_is_heard(tmp_path):
    said = ends(start_processes("shared memory", tmp_path, 2, "leave"))
    assert said == [(0, "7"), (0, "7")]


def test_a_group_of_one_has_nothing_to_do():
    [x] = parts_of(random.Random(0), 1)
    before = x.clone()
    alone = Alone()
    alone.all_reduce(x)
    alone.broadcast(x)
    assert x.equal(before)
    assert alone.gather(x) is x
