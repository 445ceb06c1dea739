"""Operations in C that are recorded, and then computed in one go."""

import gc
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch

from weft import kernels
from weft.kernels.collectives import shared_memory
from weft.kernels.linear.cpu import PackedLinear
from weft.kernels.native import build, library
from weft.kernels.native.program import Program
from weft.kernels.rms_norm.cpu import add_rms_norm, rms_norm
from weft.kernels.silu_mul.cpu import silu_mul
from weft.kernels.take_rows.cpu import take_rows

pytestmark = pytest.mark.skipif(library.runner() is None, reason="no C compiler")

WIDTH, INNER, ROWS_MAX = 64, 200, 150
EPSILON = 1e-6


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=[1, 2, 5], ids="{}-threads".format)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


class Network:
    """Some layers whose every operation needs what the one before gave."""

    def __init__(self, layers=12):
        self.norm = torch.randn(WIDTH)
        self.layers = [
            (
                PackedLinear(torch.randn(2 * INNER, WIDTH) / 8, None),
                PackedLinear(torch.randn(WIDTH, INNER) / 14, torch.randn(WIDTH)),
            )
            for _ in range(layers)
        ]

    def forward(self, x):
        normed = rms_norm(x, self.norm, EPSILON)
        for up, down in self.layers:
            normed = add_rms_norm(x, down(silu_mul(up(normed))), self.norm, EPSILON)
        return normed


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def recorded(network):
    """A program of the network, where it reads, and where it writes."""
    program, x = Program("rows"), torch.zeros(ROWS_MAX, WIDTH)
    with program.record("rows"):
        out = network.forward(x)
    return program, x, out


def test_every_c_file_compiles_where_there_is_a_compiler():
    if shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("no C compiler")
    sources = sorted(Path(kernels.__file__).resolve().parent.rglob("*.c"))
    assert len(sources) > 8
    assert [source for source in sources if build.load(source) is None] == []


def test_a_program_computes_what_its_operations_do_for_any_number_of_rows(
    network, recorded, threads
):
    program, x, out = recorded
    for rows in (1, 7, ROWS_MAX, 64, 0, 2):
        value = torch.randn(rows, WIDTH)
        x[:rows] = value
        program.run(rows=rows)
        assert out[:rows].equal(network.forward(value))


def test_nothing_is_computed_while_a_program_records(network):
    program, x = Program("rows"), torch.randn(4, WIDTH)
    before = x.clone()
    with program.record("rows"):
        network.forward(x)
    assert x.equal(before)
    network.forward(x)
    assert not x.equal(before)


def test_a_program_runs_thousands_of_times_with_more_threads_than_cores(recorded, network):
    program, x, out = recorded
    before = torch.get_num_threads()
    torch.set_num_threads(3 * (os.cpu_count() or 1))
    value = torch.randn(3, WIDTH)
    expected = network.forward(value.clone())
    for _ in range(2000):
        x[:3] = value
        program.run(rows=3)
        assert out[:3].equal(expected)
    torch.set_num_threads(before)


def test_programs_of_several_threads_run_at_the_same_time():
    wrong = []

    def work(number):
        torch.manual_seed(number)
        network, program, x = Network(4), Program("rows"), torch.zeros(ROWS_MAX, WIDTH)
        with program.record("rows"):
            out = network.forward(x)
        for rows in range(1, ROWS_MAX):
            value = torch.randn(rows, WIDTH)
            x[:rows] = value
            program.run(rows=rows)
            if not out[:rows].equal(network.forward(value)):
                wrong.append((number, rows))

    crowd = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert wrong == []


def test_operations_of_one_program_may_have_different_numbers_of_rows():
    x, chosen = torch.randn(10, WIDTH), torch.zeros(5, dtype=torch.int64)
    weight = torch.randn(WIDTH)
    program = Program("all", "some")
    with program.record("all"):
        normed = rms_norm(x, weight, EPSILON)
    with program.record("some"):
        out = take_rows(normed, chosen)
    chosen[:3] = torch.tensor([8, 0, 8])
    program.run(all=9, some=3)
    assert out[:3].equal(rms_norm(x, weight, EPSILON)[[8, 0, 8]])


def test_memory_is_used_again_only_when_nobody_holds_it():
    weight, x = torch.ones(WIDTH), torch.randn(4, WIDTH)
    program = Program("rows")
    with program.record("rows"):
        first = rms_norm(x, weight, EPSILON)
        view, at = first[:2], first.data_ptr()
        second = rms_norm(x, weight, EPSILON)
        assert second.data_ptr() != at
        del first
        gc.collect()
        third = rms_norm(x, weight, EPSILON)
        assert third.data_ptr() != at, "a view holds it"
        del view
        fourth = rms_norm(x, weight, EPSILON)
        assert fourth.data_ptr() == at


def test_an_operation_waits_for_those_whose_memory_it_touches_and_for_no_others():
    weight = torch.ones(WIDTH)
    x, y = torch.randn(4, WIDTH), torch.randn(4, WIDTH)
    program = Program("rows")
    with program.record("rows"):
        a = rms_norm(x, weight, EPSILON)
        b = rms_norm(y, weight, EPSILON)  # of nothing that a touched
        # What they give is held, so that none lies where another lay.
        c = rms_norm(a, weight, EPSILON)  # reads a
        d = add_rms_norm(x, b, weight, EPSILON)  # writes x, and all before have been waited for
        e = add_rms_norm(y, x, weight, EPSILON)  # reads what that wrote
    assert len({tensor.data_ptr() for tensor in (a, b, c, d, e)}) == 5
    assert program.waits == [False, False, True, False, True]


def test_what_is_found_to_be_wrong_while_a_program_runs_is_told_after_it():
    program, told = Program("rows"), []
    x, weight = torch.randn(2, WIDTH), torch.ones(WIDTH)
    with program.record("rows"):
        rms_norm(x, weight, EPSILON)
        program.after_run(lambda: told.append("checked"))
    program.run(rows=2)
    program.run(rows=1)
    assert told == ["checked", "checked"]


@pytest.mark.skipif(shared_memory.library() is None, reason="no C compiler")
def test_a_sum_of_ranks_is_recorded_like_any_operation(tmp_path):
    ends, sums = [None, None], [None, None]

    def rank(number):
        ends[number] = group = shared_memory.join(tmp_path, number, 2, timeout_s=120)
        x, weight, program = torch.zeros(6, WIDTH), torch.ones(WIDTH), Program("rows")
        with program.record("rows"):
            normed = rms_norm(x, weight, EPSILON)
            group.all_reduce(normed)
        x[:5] = number + 1
        x[5] = float("nan")
        program.run(rows=5)
        sums[number] = normed[:5].clone()

    pair = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in pair:
        thread.start()
    for thread in pair:
        thread.join()
    assert sums[0].equal(sums[1])
    torch.testing.assert_close(sums[0], torch.full((5, WIDTH), 2.0))
