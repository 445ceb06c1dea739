"""The private directory of one run: its sockets, its configuration, its adapters' weights.

One whose lock is free belongs to a dead run, and is removed when the next one starts.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weft.runtime import runs
from weft.runtime.config import ConfigError
from weft.runtime.topology import SOCKET_PATH_BYTES_MAX

# Adapters' weights lie in the directory: a place with less is used only if there is no other.
FREE_BYTES_MIN = 1 << 30

# Of a run's directory and the longest role's socket in it.
NAMES_BYTES_MAX = 32


class RunDir:
    """A directory that this process holds the lock of."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self.lock_fd = lock_fd

    def mark_ready(self) -> None:
        """Let clients find this run."""
        (self.path / runs.READY).touch()

    def remove(self) -> None:
        """Remove the directory with all it holds, and give up its lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock_fd)


def create() -> RunDir:
    """Make a fresh directory that only this user can enter, and remove those of dead runs."""
    base = _choose_base()
    with _locked(base):
        for path in runs.runs(base):
            _remove_if_dead(path)
        path = base / f"run-{secrets.token_hex(4)}"
        path.mkdir(mode=0o700)
        lock_fd = os.open(path / runs.LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
    return RunDir(path, lock_fd)


def _choose_base() -> Path:
    usable = []
    for base in filter(_can_use, runs.bases()):
        free_bytes = shutil.disk_usage(base).free
        if free_bytes >= FREE_BYTES_MIN:
            return base
        usable.append((free_bytes, base))
    if not usable:
        raise ConfigError(f"no private directory can be made in any of {runs.bases()}")
    return max(usable)[1]


def _can_use(base: Path) -> bool:
    """Return whether ``base`` is, or could be made, a directory that belongs to us alone."""
    if len(bytes(base)) + NAMES_BYTES_MAX > SOCKET_PATH_BYTES_MAX:
        return False
    try:
        base.mkdir(mode=0o700, exist_ok=True)
        found = base.lstat()
    except OSError:
        return False
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return is_ours and stat.S_IMODE(found.st_mode) & 0o077 == 0


def _remove_if_dead(path: Path) -> None:
    if runs.is_dead(path):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked(base: Path) -> Iterator[None]:
    """Keep other launchers away while a directory is made but not locked yet."""
    fd = os.open(base / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
