"""Where runs of this machine lie, and which of them live. Standard library only: clients use it.

A run's directory is locked as long as the run or its janitor lives.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

LOCK = "lock"
READY = "ready"


class NoRun(LookupError):
    """No weft is running; the message says what to do."""


def newest() -> Path:
    """Return the directory of the run that became ready last. Raises ``NoRun``."""
    ready = []
    for base in filter(Path.is_dir, bases()):
        for path in runs(base):
            mark = path / READY
            if mark.exists() and not is_dead(path):
                ready.append((mark.stat().st_mtime_ns, path))
    if not ready:
        raise NoRun("no weft is running: start one with `weft serve CONFIG`")
    return max(ready)[1]


def bases() -> list[Path]:
    """Return where runs may lie, best first: memory rather than disk."""
    owner = f"weft-{os.getuid()}"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    places = [Path(runtime, "weft")] if runtime else []
    return [*places, Path("/dev/shm", owner), Path(tempfile.gettempdir(), owner)]


def runs(base: Path) -> list[Path]:
    """Return the directories of runs, living or dead."""
    return [path for path in base.glob("run-*") if path.is_dir()]


def is_dead(path: Path) -> bool:
    """Return whether nobody holds a run's lock."""
    try:
        lock_fd = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True  # its making, or its removal, was cut short
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock_fd)
    return True
