"""What a process gives up for good before it reads files that nobody vouches for. Linux only.

Landlock (https://docs.kernel.org/userspace-api/landlock.html) takes writing, executing and the
network away; a kernel without it leaves the limits. Reading stays allowed: what was read can go
nowhere but into the answer, and into the file that the process was given open.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Iterable
from pathlib import Path

# From linux/prctl.h.
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38

# From asm-generic/unistd.h: the same on every architecture.
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_ADD_RULE = 445
_LANDLOCK_RESTRICT_SELF = 446

# From linux/landlock.h. What a ruleset handles and no rule allows is refused; each version of the
# interface knows more rights, and refuses a ruleset with those that it does not know.
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEVICE = 1 << 14, 1 << 15
_REFER_VERSION = 2  # the first that can rename from folder to folder
_FILE_RIGHTS = (0, 13, 14, 15, 15, 16)  # how many, by version; the last stands for later ones
_NET_RIGHTS = (0, 0, 0, 0, 2)  # to bind and to connect TCP
_SCOPES = (0, 0, 0, 0, 0, 0, 2)  # abstract sockets and signals of processes outside

_PAGE_BYTES = resource.getpagesize()


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent, whose pid is given, ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it ended before we asked


def confine(*, memory_bytes: int, file_bytes: int, files: int) -> None:
    """Give up everything but reading, and computing within limits.

    ``memory_bytes`` is address space beyond what is mapped now, ``file_bytes`` the size of a file
    that is written, ``files`` how many may be open.
    """
    with open("/proc/self/statm") as status:
        mapped_bytes = int(status.read().split()[0]) * _PAGE_BYTES
    for kind, limit in (
        (resource.RLIMIT_AS, mapped_bytes + memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _limit(kind, limit)
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _landlock()


def write_only_into(folder: Path, *, file_bytes: int) -> None:
    """Give up writing anywhere but below ``folder``, and files larger than ``file_bytes``."""
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _landlock_writing((folder, Path(os.devnull)))


def allow_processor_time(seconds: int) -> None:
    """Have the kernel end this process once it has computed for so long from now on."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    limit = int(usage.ru_utime + usage.ru_stime) + 1 + seconds
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def _limit(kind: int, limit: int) -> None:
    hard = resource.getrlimit(kind)[1]
    # A stricter limit than ours stays.
    least = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (least, least))


def _landlock() -> None:
    version = _landlock_version()
    if version < 1:
        return
    net, scopes = (_first(table, version) for table in (_NET_RIGHTS, _SCOPES))
    rights = _first(_FILE_RIGHTS, version) & ~(_READ_FILE | _READ_DIR)
    _restrict(_ruleset(rights, net, scopes))


def _landlock_writing(places: Iterable[Path]) -> None:
    version = _landlock_version()
    if version < _REFER_VERSION:  # renaming from folder to folder would be refused everywhere
        return
    rights = _first(_FILE_RIGHTS, version) & ~(_EXECUTE | _READ_FILE | _READ_DIR | _IOCTL_DEVICE)
    ruleset = _ruleset(rights, 0, 0)
    for place in places:
        descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
        allowed = rights if place.is_dir() else rights & (_WRITE_FILE | _TRUNCATE)
        rule = struct.pack("=Qi", allowed, descriptor)
        if _libc().syscall(_LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0) != 0:
            raise OSError(ctypes.get_errno(), "landlock")
        os.close(descriptor)
    _restrict(ruleset)


def _landlock_version() -> int:
    version: int = _libc().syscall(_LANDLOCK_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    return version


def _first(counts: tuple[int, ...], version: int) -> int:
    """Return as many of the first rights as a version knows."""
    return (1 << counts[min(version, len(counts) - 1)]) - 1


def _ruleset(rights: int, net: int, scopes: int) -> int:
    attributes = struct.pack("=QQQ", rights, net, scopes)
    # A kernel takes a longer structure than it knows, if the rest is zero.
    ruleset: int = _libc().syscall(_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock")
    return ruleset


def _restrict(ruleset: int) -> None:
    if _libc().syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0:
        raise OSError(ctypes.get_errno(), "landlock")
    os.close(ruleset)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc().prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")
