"""One process of a run: a role in the run's directory, in one of the role's lives.

``python -m weft.runtime.process ROLE RUN_DIR STATUS_FD PULSE_FD EPOCH``
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

import msgspec

from weft.runtime import log, loop, topology
from weft.runtime.config import Config, ConfigError
from weft.runtime.endpoint import Endpoint
from weft.runtime.identity import process_identity
from weft.runtime.pulse import Pulse
from weft.runtime.status import Failed, Progress, Ready, StatusPipe
from weft.runtime.transport import ZmqMailbox

# From linux/prctl.h.
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15

# Files that a process may have open, as far as the system lets it: each connection is one. Shells
# allow 1,024, fewer than there may be clients, and libzmq ends a process that has none left.
FILES_MAX = 65536

# Exit codes, of a process and of the whole run.
EXIT_BUG = 1
EXIT_REFUSED = 2  # the user can mend it

_log = logging.getLogger(__name__)


class Life(NamedTuple):
    """What tells a process from all others, as its launcher names it."""

    role: str
    run_dir: Path
    status: StatusPipe
    pulse: Pulse
    epoch: int  # which of the role's lives this is, from 1


class Handover(msgspec.Struct, frozen=True):
    """What the launcher leaves in the run directory for every process."""

    config: Config
    topology: str  # "module:function", of the configuration
    launcher_pid: int
    key: bytes  # by which the run's processes know each other

    def write(self, run_dir: Path) -> None:
        """Write it where ``read`` looks."""
        (run_dir / "handover.msgpack").write_bytes(msgspec.msgpack.encode(self))

    @staticmethod
    def read(run_dir: Path) -> Handover:
        """Return what the launcher wrote."""
        return msgspec.msgpack.decode((run_dir / "handover.msgpack").read_bytes(), type=Handover)


def main() -> int:
    """Run one role until it is drained; return the exit code."""
    role, run_dir, status = sys.argv[1], Path(sys.argv[2]), StatusPipe(int(sys.argv[3]))
    life = Life(role, run_dir, status, Pulse(int(sys.argv[4])), epoch=int(sys.argv[5]))
    handover = Handover.read(run_dir)
    _live_with(handover.launcher_pid, role)
    log.setup(role, handover.config.log_level)
    _report_crashes(status)
    _raise_files_limit()
    table = topology.find(handover.topology, handover.config)
    process = table.process(role)
    try:
        start = _function(process.start)
        if process.is_actor:
            _run_actor(start, life, table, handover)
        else:
            start(handover.config, run_dir, lambda url: status.say(Ready(url)))
    except ConfigError as error:
        status.say(Failed(str(error), is_users=True))
        return EXIT_REFUSED
    return 0


def _run_actor(
    build: Callable[..., Any], life: Life, table: topology.Topology, handover: Handover
) -> None:
    role, status, key = life.role, life.status, handover.key
    drain = loop.Drain()
    wakes = select.epoll()
    identity = process_identity(role, life.epoch, key)
    endpoint = Endpoint(role, table, identity=identity, epoch=life.epoch, key=key)
    # Before anything that takes long: the others hear at once that a former life is over.
    mailbox = ZmqMailbox(endpoint, table, life.run_dir, wakes.fileno())

    def report(share: float, what: str) -> None:
        life.pulse.beat()
        status.say(Progress(what, share))

    try:
        actor = build(
            role,
            handover.config,
            life.run_dir,
            report,
            wakes,
            life.epoch,
        )
        loop.run(actor, mailbox, drain, lambda: status.say(Ready()), life.pulse.beat)
    finally:
        mailbox.close()


def _live_with(launcher_pid: int, role: str) -> None:
    """Have the kernel kill this process when its launcher dies, and name it for ``ps``."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != launcher_pid:
        os._exit(EXIT_BUG)  # it died before we asked
    prctl(_PR_SET_NAME, f"weft-{role}".encode())


def _raise_files_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ceiling = FILES_MAX if hard == resource.RLIM_INFINITY else min(FILES_MAX, hard)
    if soft != resource.RLIM_INFINITY and soft < ceiling:
        resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))


def _report_crashes(status: StatusPipe) -> None:
    """Have an uncaught exception's last line told to the launcher, and its traceback logged."""

    def report(
        kind: type[BaseException], error: BaseException, where: TracebackType | None
    ) -> None:
        last_line = traceback.format_exception_only(kind, error)[-1].strip()
        status.say(Failed(last_line, is_users=False))
        _log.critical("this is a bug, and ends the process", exc_info=(kind, error, where))
        _end(EXIT_BUG)

    sys.excepthook = report


def _end(code: int) -> NoReturn:
    """End the process without the interpreter's own clearing up.

    That takes libraries apart in an order that some of them complain about at length.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _function(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    found: Callable[..., Any] = vars(importlib.import_module(module))[function]
    return found


if __name__ == "__main__":
    _end(main())
