"""Starts the processes of a run, watches them, and stops them in order.

Nothing outlives the launcher: each process asks the kernel to die with it, and a janitor cleans up
behind a launcher that was killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from weft.runtime import cores, identity, janitor, rundir, topology
from weft.runtime.announce import announcement
from weft.runtime.config import Config
from weft.runtime.cores import Share
from weft.runtime.listen import listen
from weft.runtime.process import EXIT_BUG, EXIT_REFUSED, Handover
from weft.runtime.progress import ProgressDisplay
from weft.runtime.rundir import RunDir
from weft.runtime.status import Failed, Progress, Ready, StatusReader
from weft.runtime.topology import Process

# Beyond drain_timeout_s, for processes to close their sockets once their work is done.
CLOSE_GRACE_S = 2.0

# A signal that follows another one sooner is the same: wrappers such as timeout(1) send it to the
# process and to its group, so that it comes twice.
SIGNAL_ECHO_S = 0.25

# Some microseconds: what lies between two operations of a small model.
OMP_SPINS = "1000"

STATUS_READ_BYTES = 65536
SIGNAL_BYTES = 64

_log = logging.getLogger(__name__)


class Died(Exception):
    """A process ended that should not have."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(Exception):
    """A signal asks the run to stop."""


class _Child:
    """A process of the run, as its launcher sees it."""

    def __init__(self, process: Process, popen: subprocess.Popen[bytes], status_fd: int) -> None:
        self.process = process
        self.popen = popen
        self.pid_fd = os.pidfd_open(popen.pid)
        self.status_fd = status_fd
        self.reader = StatusReader()
        self.ready: Ready | None = None
        self.failed: Failed | None = None
        self.is_stopping = False

    @property
    def is_alive(self) -> bool:
        return self.popen.returncode is None

    def kill(self) -> None:
        """End it at once, with every process that it has started itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)

    def died(self) -> Died:
        """Return the error that says how it ended."""
        role, code = self.process.role, self.popen.returncode
        if self.failed and self.failed.is_users:
            return Died(f"{role}: {self.failed.message}", EXIT_REFUSED)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        why = f": {self.failed.message}" if self.failed else ""
        return Died(f"the process {role} {how}{why}", EXIT_BUG)


class Launcher:
    """One run, from its first process to its last. Must live on the main thread."""

    def __init__(self, config: Config, topology_name: str) -> None:
        """``topology_name`` is "module:function", of the configuration."""
        self._config = config
        self._topology_name = topology_name
        self._topology = topology.find(topology_name, config)
        self._shares: dict[str, Share] = {}  # by role, of those that compute
        self._children: dict[str, _Child] = {}  # by role, in order of start
        self._selector = selectors.DefaultSelector()
        self._progress = ProgressDisplay(sys.stderr)
        self._signals = 0
        self._signals_heeded = 0
        self._signalled_at = 0.0

    def run(self) -> int:
        """Start everything, serve until a signal, stop everything; return the exit code.

        Raises ``ConfigError`` for what can be refused before anything is started.
        """
        started_at = time.monotonic()
        # What is wrong with the address is better heard now than after minutes of loading weights.
        listen(self._config).close()
        self._watch_signals()
        run_dir = rundir.create()
        pipe_fd, janitor_process = _start_janitor(run_dir)
        try:
            self._start_all(run_dir, pipe_fd)
            self._announce(run_dir, time.monotonic() - started_at)
            self._wait(lambda: False)
        except Died as death:
            print(f"weft: error: {death}", file=sys.stderr)
            return death.exit_code
        except Interrupted:
            return self._drain()
        finally:
            self._kill_all()
            os.close(pipe_fd)
            janitor_process.wait()
            run_dir.remove()
        raise AssertionError("waiting ends in an exception")

    def _start_all(self, run_dir: RunDir, pipe_fd: int) -> None:
        """Start the actors; once they are ready, what lets the world in."""
        handover = Handover(self._config, self._topology_name, os.getpid(), identity.fresh_key())
        handover.write(run_dir.path)
        computing = [role for group in self._topology.groups.values() for role in group]
        is_ours = cores.is_machine_ours(run_dir.path)
        threads = self._config.threads
        divided = cores.shares(len(computing), threads, cores.usable(), is_ours=is_ours)
        self._shares = dict(zip(computing, divided, strict=True))
        for is_actor in (True, False):
            for process in self._topology.processes:
                if process.is_actor == is_actor:
                    self._start(process, run_dir.path, pipe_fd)
            self._wait(lambda: all(child.ready for child in self._children.values()))
        run_dir.mark_ready()

    def _start(self, process: Process, run_dir: Path, pipe_fd: int) -> None:
        share = self._shares.get(process.role, Share(1, None))
        read_fd, write_fd = os.pipe()
        # The launcher's main thread starts every child: the kernel's death signal is tied to it.
        popen = subprocess.Popen(
            [sys.executable, "-m", "weft.runtime.process", process.role, run_dir, str(write_fd)],
            stdin=subprocess.DEVNULL,
            pass_fds=[write_fd],
            env=_environment(share.threads),
            start_new_session=True,  # the terminal's Ctrl-C is for the launcher alone
        )
        os.close(write_fd)
        os.write(pipe_fd, f"+{popen.pid}\n".encode())
        cores.pin(popen.pid, share)
        child = _Child(process, popen, read_fd)
        self._children[process.role] = child
        self._selector.register(child.pid_fd, selectors.EVENT_READ, child)
        self._selector.register(child.status_fd, selectors.EVENT_READ, child)

    def _wait(self, until: Callable[[], bool], deadline: float | None = None) -> bool:
        """Watch everything until ``until`` holds; return False if the deadline comes first.

        Raises ``Died`` and ``Interrupted``.
        """
        while not until():
            if self._signals > self._signals_heeded:
                self._signals_heeded = self._signals
                raise Interrupted
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            for key, _ in self._selector.select(left):
                child: _Child | None = key.data
                if child is None:
                    os.read(key.fd, SIGNAL_BYTES)
                elif key.fd == child.status_fd:
                    self._hear(child)
                elif child.is_alive:
                    self._bury(child)
        return True

    def _wait_for_end(self, child: _Child, deadline: float) -> bool:
        return self._wait(lambda: not child.is_alive, deadline)

    def _hear(self, child: _Child) -> None:
        data = os.read(child.status_fd, STATUS_READ_BYTES)
        if not data:
            self._selector.unregister(child.status_fd)
            return
        for status in child.reader.feed(data):
            match status:
                case Progress():
                    self._progress.show(child.process.role, status)
                case Ready():
                    child.ready = status
                    self._progress.done(child.process.role)
                case Failed():
                    child.failed = status

    def _bury(self, child: _Child) -> None:
        """Reap a process that has ended; raise ``Died`` if nobody told it to."""
        child.popen.wait()
        self._progress.done(child.process.role)
        self._selector.unregister(child.pid_fd)
        while child.status_fd in self._selector.get_map():
            self._hear(child)  # its last words
        if not child.is_stopping or child.popen.returncode != 0:
            raise child.died()

    def _drain(self) -> int:
        """Stop the processes one after the other, in the table's order, each when it is done."""
        if not all(child.ready for child in self._children.values()):
            _log.warning("stopped before it was ready")
            return EXIT_BUG
        _log.info("draining: waiting up to %g s", self._config.drain_timeout_s)
        deadline = time.monotonic() + self._config.drain_timeout_s + CLOSE_GRACE_S
        try:
            for process in self._topology.processes:
                child = self._children[process.role]
                child.is_stopping = True
                child.popen.terminate()
                if not self._wait_for_end(child, deadline):
                    _log.warning("drain_timeout_s is over; what %s still had is lost", process.role)
                    return EXIT_BUG
        except Died as death:
            _log.error("%s, while draining", death)
            return EXIT_BUG
        except Interrupted:
            _log.warning("a second signal: stopping at once")
            return EXIT_BUG
        _log.info("drained")
        return 0

    def _kill_all(self) -> None:
        for child in self._children.values():
            child.kill()
        for child in self._children.values():
            child.popen.wait()
            os.close(child.pid_fd)
            os.close(child.status_fd)
        self._selector.close()

    def _watch_signals(self) -> None:
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_fd)
        self._selector.register(read_fd, selectors.EVENT_READ, None)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._signalled)

    def _signalled(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now >= self._signalled_at + SIGNAL_ECHO_S:
            self._signals += 1
        self._signalled_at = now

    def _announce(self, run_dir: RunDir, seconds: float) -> None:
        urls = [child.ready.url for child in self._children.values() if child.ready]
        url = next(filter(None, urls), None)
        print(announcement(self._config, run_dir.path, url, seconds), end="", flush=True)


def _start_janitor(run_dir: RunDir) -> tuple[int, subprocess.Popen[bytes]]:
    """Return the pipe that keeps it waiting, and the process."""
    read_fd, write_fd = os.pipe()
    popen = subprocess.Popen(
        # Isolated and without site: nothing but the standard library, and a fast start.
        [sys.executable, "-I", "-S", janitor.__file__, str(read_fd), run_dir.path],
        stdin=subprocess.DEVNULL,
        pass_fds=[read_fd, run_dir.lock_fd],  # it holds the lock as long as it lives
        start_new_session=True,
    )
    os.close(read_fd)
    return write_fd, popen


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
