"""One process of a run, as its launcher sees it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from weft.runtime import cores
from weft.runtime.cores import Share
from weft.runtime.process import EXIT_BUG, EXIT_REFUSED
from weft.runtime.pulse import Watch
from weft.runtime.status import Failed, Progress, Ready, Status, StatusReader

# Some microseconds: what lies between two operations of a small model.
OMP_SPINS = "1000"

STATUS_READ_BYTES = 65536


class Died(Exception):
    """A process ended that should not have."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Child:
    """One life of a role. Its launcher's main thread must start it, and outlive it."""

    def __init__(self, role: str, epoch: int, run_dir: Path, share: Share) -> None:
        """Start the process. ``epoch`` counts the role's lives, ``share`` is of the cores."""
        self.role = role
        self.ready: Ready | None = None
        self.failed: Failed | None = None
        self.doing = ""  # how far its start has come, in words
        self.is_stopping = False  # it was told to end
        self.is_killed = False
        self.watch = Watch()
        self.status_fd, write_fd = os.pipe()
        arguments = [role, str(run_dir), str(write_fd), str(self.watch.fd), str(epoch)]
        # The launcher's main thread starts every child: the kernel's death signal is tied to it.
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "weft.runtime.process", *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=[write_fd, self.watch.fd],
            env=_environment(share.threads),
            start_new_session=True,  # the terminal's Ctrl-C is for the launcher alone
        )
        os.close(write_fd)
        self.pid = self._popen.pid
        self.pid_fd = os.pidfd_open(self.pid)
        cores.pin(self.pid, share)
        self._reader = StatusReader()

    @property
    def is_alive(self) -> bool:
        """Whether it has not been reaped."""
        return self._popen.returncode is None

    @property
    def ended_well(self) -> bool:
        """Whether it did what it was told. It has been reaped."""
        return self.is_killed or (self.is_stopping and self._popen.returncode == 0)

    def hear(self) -> list[Status] | None:
        """Return what it has said since the last time; None: it will say nothing more."""
        data = os.read(self.status_fd, STATUS_READ_BYTES)
        if not data:
            return None
        said = self._reader.feed(data)
        for status in said:
            match status:
                case Ready():
                    self.ready = status
                case Failed():
                    self.failed = status
                case Progress(what, share):
                    self.doing = f"{what} {share:.0%}"
        return said

    def stop(self) -> None:
        """Ask it to end once its work is done."""
        self.is_stopping = True
        self._popen.terminate()

    def kill(self) -> None:
        """End it at once, with every process that it has started itself."""
        if self.is_alive:
            self.is_killed = True
            os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> None:
        """Wait for its end, and end what it has left behind."""
        # Until it is reaped nobody else can get its number.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()

    def close(self) -> None:
        """Give up what was held for it."""
        self.watch.close()
        os.close(self.pid_fd)
        os.close(self.status_fd)

    def died(self) -> Died:
        """Return the error that says how it ended. It has been reaped."""
        code = self._popen.returncode
        if self.failed and self.failed.is_users:
            return Died(f"{self.role}: {self.failed.message}", EXIT_REFUSED)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        why = f": {self.failed.message}" if self.failed else ""
        return Died(f"the process {self.role} {how}{why}", EXIT_BUG)


def _environment(threads: int) -> dict[str, str]:
    return {
        # A thread that waits for another one soon sleeps. OpenMP lets it spin by default, which is
        # a sixth faster on an idle machine, and thirty times slower if another program uses a
        # core; to sleep at once costs a fifth. GCC's runtime counts spins, others know only the
        # policy.
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": OMP_SPINS,
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
