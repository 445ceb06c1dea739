"""Starts the processes of a run, and stops them in order.

Nothing outlives the launcher: each process asks the kernel to die with it, and a janitor cleans up
behind a launcher that was killed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from weft.runtime import cores, identity, rundir, topology
from weft.runtime.announce import announcement
from weft.runtime.child import Died
from weft.runtime.clean_up import Janitor
from weft.runtime.config import Config
from weft.runtime.listen import listen
from weft.runtime.process import EXIT_BUG, Handover
from weft.runtime.processes import Processes
from weft.runtime.rundir import RunDir

# Beyond drain_timeout_s, for processes to close their sockets once their work is done.
CLOSE_GRACE_S = 2.0

# What the gateway has, once all others are gone, to tell whoever waits for an answer.
FAREWELL_S = 1.0

# A signal that follows another one sooner is the same: wrappers such as timeout(1) send it to the
# process and to its group, so that it comes twice.
SIGNAL_ECHO_S = 0.25

SIGNAL_BYTES = 64

_log = logging.getLogger(__name__)


class Interrupted(Exception):
    """A signal asks the run to stop."""


class Launcher:
    """One run, from its first process to its last. Must live on the main thread."""

    def __init__(self, config: Config, topology_name: str) -> None:
        """``topology_name`` is "module:function", of the configuration."""
        self._config = config
        self._topology_name = topology_name
        self._topology = topology.find(topology_name, config)
        self._wakes = -1  # readable when a signal has come
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
        janitor = Janitor(run_dir)
        processes = self._processes(run_dir, janitor)
        try:
            self._start_all(processes, run_dir)
            url = next(iter(processes.urls), None)
            seconds = time.monotonic() - started_at
            print(announcement(self._config, run_dir.path, url, seconds), end="", flush=True)
            self._wait(processes, lambda: False)
        except Died as death:
            print(f"weft: error: {death}", file=sys.stderr)
            processes.leave(self._doors, FAREWELL_S)
            return death.exit_code
        except Interrupted:
            return self._drain(processes)
        finally:
            processes.kill_all()
            janitor.end()
            run_dir.remove()
        raise AssertionError("waiting ends in an exception")

    @property
    def _doors(self) -> list[str]:
        """Who talks to the outside world."""
        return [process.role for process in self._topology.processes if not process.is_actor]

    def _processes(self, run_dir: RunDir, janitor: Janitor) -> Processes:
        computing = [role for group in self._topology.groups.values() for role in group]
        is_ours = cores.is_machine_ours(run_dir.path)
        threads, usable = self._config.threads, cores.usable()
        shares = cores.shares(len(computing), threads, usable, is_ours=is_ours)
        return Processes(
            self._topology,
            run_dir.path,
            dict(zip(computing, shares, strict=True)),
            janitor=janitor,
            watchdog_timeout_s=self._config.watchdog_timeout_s,
            loading_timeout_s=self._config.loading_timeout_s,
        )

    def _start_all(self, processes: Processes, run_dir: RunDir) -> None:
        """Start the actors; once they are ready, what lets the world in."""
        handover = Handover(self._config, self._topology_name, os.getpid(), identity.fresh_key())
        handover.write(run_dir.path)
        for is_actor in (True, False):
            processes.start(p.role for p in self._topology.processes if p.is_actor == is_actor)
            self._wait(processes, lambda: processes.are_ready)
        processes.restarts = True
        run_dir.mark_ready()

    def _wait(
        self, processes: Processes, until: Callable[[], bool], deadline: float | None = None
    ) -> bool:
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
            if processes.attend(self._wakes, left):
                os.read(self._wakes, SIGNAL_BYTES)
        return True

    def _wait_for_end(self, processes: Processes, role: str, deadline: float) -> bool:
        return self._wait(processes, lambda: not processes.is_alive(role), deadline)

    def _drain(self, processes: Processes) -> int:
        """Stop the processes one after the other, in the table's order, each when it is done."""
        if not processes.restarts:
            _log.warning("stopped before it was ready")
            return EXIT_BUG
        _log.info("draining: waiting up to %g s", self._config.drain_timeout_s)
        deadline = time.monotonic() + self._config.drain_timeout_s + CLOSE_GRACE_S
        try:
            for process in self._topology.processes:
                role = process.role
                processes.stop(role)
                if not self._wait_for_end(processes, role, deadline):
                    _log.warning("drain_timeout_s is over; what %s still had is lost", role)
                    return EXIT_BUG
        except Died as death:
            _log.error("%s, while draining", death)
            return EXIT_BUG
        except Interrupted:
            _log.warning("a second signal: stopping at once")
            return EXIT_BUG
        _log.info("drained")
        return 0

    def _watch_signals(self) -> None:
        self._wakes, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_fd)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._signalled)

    def _signalled(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now >= self._signalled_at + SIGNAL_ECHO_S:
            self._signals += 1
        self._signalled_at = now
