import threading
from pathlib import Path

import pytest
import torch

from tests.actors.runner.engines import save_adapter
from tests.actors.scheduler_harness import GREEDY
from tests.checkpoints import ARCHITECTURES
from weft.actors.runner.loads import Loads
from weft.runtime.messages import AdapterLoad, Join, Step


class HeldSlots:
    """Slots that are not filled before they may."""

    def __init__(self):
        self.may = threading.Event()
        self.filled = []
        self.cores = []
        self.error = None

    def fill(self, slot, file, pages):
        assert self.may.wait(60)
        if self.error:
            raise self.error
        torch.ones(1 << 17).exp()
        self.cores.append(torch.get_num_threads())
        self.filled.append((slot, file.digest, list(pages)))


@pytest.fixture
def load(tmp_path):
    """A function that returns the load of an adapter whose file is there."""
    ARCHITECTURES["llama"]().save_pretrained(tmp_path)

    def make(slot, pages):
        path = save_adapter(tmp_path, tmp_path, f"x{slot}", modules=("v_proj",))
        return AdapterLoad(slot, f"x{slot}", path, pages)

    return make


@pytest.fixture
def slots():
    slots = HeldSlots()
    yield slots
    slots.may.set()


def join(pages):
    return Join(0, [], 0, pages, GREEDY, 0, 1, None)


def test_a_step_that_uses_nothing_of_a_load_does_not_wait_for_it(slots, load):
    loads = Loads(slots)
    loads.begin(load(1, [4, 5]))
    others = Step(1, [load(2, [6])], [0], [join([7, 8])], [0], [9])
    loads.make_way(others)
    loads.wait([2, 3])
    assert slots.filled == []
    slots.may.set()
    loads.wait()
    assert slots.filled == [(1, "x1", [4, 5])]


def test_copying_takes_one_core_and_computing_keeps_its_own(slots, load):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        loads = Loads(slots)
        slots.may.set()
        loads.begin(load(1, [4]))
        loads.wait()
        assert slots.cores == [1]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_adapters_are_copied_in_the_order_of_their_steps_on_every_rank(slots, load):
    loads = Loads(slots)
    for slot in (3, 1, 2):
        loads.begin(load(slot, [slot]))
    slots.may.set()
    loads.wait([2])
    assert [slot for slot, *_ in slots.filled] == [3, 1, 2]


@pytest.mark.parametrize(
    "step",
    [
        Step(1, joins=[join([3, 5])]),
        Step(1, page_rows=[0], page_ids=[4]),
        Step(1, [AdapterLoad(2, "y", "/y", [5, 6])]),
        Step(1, [AdapterLoad(1, "y", "/y", [7])]),
    ],
    ids=["sequence", "growth", "adapter", "slot"],
)
def test_who_gets_what_a_load_has_comes_after_it(slots, load, step):
    loads = Loads(slots)
    loads.begin(load(1, [4, 5]))
    waiting = threading.Thread(target=loads.make_way, args=(step,))
    waiting.start()
    assert slots.filled == []
    slots.may.set()
    waiting.join(60)
    assert slots.filled == [(1, "x1", [4, 5])]


def test_a_file_may_lose_its_name_once_its_load_has_begun(slots, load):
    loads = Loads(slots)
    begun = load(1, [4])
    loads.begin(begun)
    Path(begun.path).unlink()
    slots.may.set()
    loads.wait([1])
    assert slots.filled == [(1, "x1", [4])]


def test_what_goes_wrong_with_a_load_is_told_to_who_waits_for_it(slots, load):
    loads = Loads(slots)
    slots.error = RuntimeError("no such page")
    slots.may.set()
    loads.begin(load(1, [4]))
    with pytest.raises(RuntimeError, match="no such page"):
        loads.wait([1])
    loads.wait([1])  # it is told once


def test_those_that_compute_keep_their_threads(slots):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        Loads(slots)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_a_load_is_under_way_until_it_is_there(slots, load):
    loads = Loads(slots)
    assert loads.under_way == []
    loads.begin(load(1, [4]))
    loads.begin(load(2, [5]))
    assert loads.under_way == [1, 2]
    slots.may.set()
    loads.wait([1])
    loads.wait([2])
    assert loads.under_way == []


def test_a_load_that_has_failed_is_not_under_way(slots, load):
    loads = Loads(slots)
    slots.error = RuntimeError("no such page")
    slots.may.set()
    loads.begin(load(1, [4]))
    while loads.under_way:
        pass
    with pytest.raises(RuntimeError, match="no such page"):
        loads.wait([1])
