import platform
import threading

import pytest

from weft.actors.runner import host_memory

SIZE = 64 * 2**20

KERNEL = tuple(map(int, platform.release().split(".")[:2]))


def resident_bytes():
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))


def wait_for_the_thread():
    for thread in threading.enumerate():
        if thread.name == "touch":
            thread.join(60)
            assert not thread.is_alive()


@pytest.mark.skipif(KERNEL < (5, 14), reason="the kernel cannot be asked for pages")
def test_memory_is_there_before_anybody_writes_to_it():
    before = resident_bytes()

    memory = host_memory.zeros(SIZE)
    wait_for_the_thread()

    assert resident_bytes() - before > 0.9 * SIZE
    assert memory.shape == (SIZE,)
    assert not memory.any()


def test_what_is_written_meanwhile_stays():
    memory = host_memory.zeros(SIZE)
    memory[:: 2**20] = 7
    wait_for_the_thread()

    assert memory[:: 2**20].eq(7).all()
    assert memory.count_nonzero() == SIZE // 2**20


def test_a_size_need_not_be_of_whole_pages():
    memory = host_memory.zeros(SIZE + 1234)
    wait_for_the_thread()

    memory[-1] = 1
    assert memory.count_nonzero() == 1
