"""What the launcher makes of what it hears of its processes."""

import os
import signal
from pathlib import Path

import pytest

from weft.runtime import processes
from weft.runtime.processes import Processes
from weft.runtime.topology import TOPOLOGY


class Spoken:
    """A process that has said its last words and ended: both can be read of it."""

    is_killed = True
    ended_well = True
    ready = None

    def __init__(self, role, epoch, run_dir, share):
        self.role = role
        self.pid = os.getpid()
        self.is_alive = True
        self.heard = 0
        self.status_fd, said = os.pipe()
        self.pid_fd, ended = os.pipe()
        os.close(said)
        os.close(ended)

    def hear(self):
        assert os.read(self.status_fd, 1) == b""
        self.heard += 1

    def reap(self):
        self.is_alive = False

    def close(self):
        os.close(self.status_fd)
        os.close(self.pid_fd)


class Nobody:
    """A janitor that lives."""

    def __init__(self):
        self.pid_fd, self._end = os.pipe()

    def note_start(self, pid):
        pass

    def note_end(self, pid):
        pass

    def close(self):
        os.close(self.pid_fd)
        os.close(self._end)


@pytest.fixture
def launched(monkeypatch):
    monkeypatch.setattr(processes, "Child", Spoken)
    janitor = Nobody()
    launched = Processes(
        TOPOLOGY, Path("-"), {}, janitor=janitor, watchdog_timeout_s=9, loading_timeout_s=9
    )
    yield launched
    launched._selector.close()
    janitor.close()


@pytest.mark.parametrize("is_end_first", [True, False])
def test_the_end_of_a_process_and_its_last_words_may_come_at_once_in_any_order(
    launched, is_end_first
):
    launched.start(["gateway"])
    child = launched._children["gateway"]
    select = launched._selector.select

    def in_order(timeout):
        return sorted(
            select(timeout), key=lambda event: (event[0].fd == child.pid_fd) != is_end_first
        )

    launched._selector.select = in_order
    wakes, wake = os.pipe()
    os.write(wake, bytes([signal.SIGTERM]))
    assert launched.attend(wakes, 0.0)
    assert not child.is_alive
    assert child.heard == 1
    for fd in (wakes, wake):
        os.close(fd)
