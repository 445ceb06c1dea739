"""The janitor, as its launcher sees it: told who lives, and started again when it dies itself."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys

from weft.runtime import janitor
from weft.runtime.rundir import RunDir

_log = logging.getLogger(__name__)


class Janitor:
    """Cleans up behind a launcher that could not; see ``janitor.py``."""

    def __init__(self, run_dir: RunDir) -> None:
        """Start it. ``run_dir`` is what it removes."""
        self._run_dir = run_dir
        self._living: set[int] = set()
        self._start()

    def note_start(self, pid: int) -> None:
        """Tell it of a process that must not be left behind."""
        self._living.add(pid)
        self._tell(f"+{pid}\n")

    def note_end(self, pid: int) -> None:
        """Tell it of a process that has been reaped."""
        self._living.remove(pid)
        self._tell(f"-{pid}\n")

    def restart(self) -> None:
        """Begin its next life, after one that has ended too soon. ``pid_fd`` becomes another."""
        _log.warning("the janitor has died; starting it again")
        self.end()
        self._start()
        for pid in self._living:
            self._tell(f"+{pid}\n")

    def end(self) -> None:
        """Have it remove the directory, and wait until it has."""
        os.close(self._pipe_fd)
        os.close(self.pid_fd)
        self._popen.wait()

    def _start(self) -> None:
        read_fd, self._pipe_fd = os.pipe()
        self._popen = subprocess.Popen(
            # Isolated and without site: nothing but the standard library, and a fast start.
            [sys.executable, "-I", "-S", janitor.__file__, str(read_fd), self._run_dir.path],
            stdin=subprocess.DEVNULL,
            pass_fds=[read_fd, self._run_dir.lock_fd],  # it holds the lock as long as it lives
            start_new_session=True,
        )
        os.close(read_fd)
        self.pid_fd = os.pidfd_open(self._popen.pid)

    def _tell(self, line: str) -> None:
        # One that has died hears of all in its next life, which ``pid_fd`` calls for.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._pipe_fd, line.encode())
