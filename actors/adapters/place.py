"""What the place of the store's files is: memory, if it can be, and how much of it there is."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from weft.runtime.config import Config

# File systems that keep files in memory, as Linux calls them.
MEMORY_TYPES = frozenset({"tmpfs", "ramfs"})

# Of what is free there: the rest is for what is written beside, and for other runs.
SHARE_MAX = 0.9

_MIB = 1024 * 1024

_log = logging.getLogger("weft.adapters")


def fitted(config: Config, run_dir: Path) -> Config:
    """Return the configuration with no more host memory for adapters than there is for their files.

    What the user should know of the place goes to the log.
    """
    mounts = Path("/proc/self/mountinfo").read_text()
    if not is_in_memory(os.stat(run_dir).st_dev, mounts):
        _log.warning(
            "%s is on a disk: adapters may be read from it again when memory is short; let "
            "/dev/shm have %d MiB free, or set XDG_RUNTIME_DIR to a place in memory",
            run_dir, config.adapter_host_memory_mib,
        )  # fmt: skip
    status = os.statvfs(run_dir)
    room_mib = SHARE_MAX * status.f_bavail * status.f_frsize / _MIB
    if room_mib >= config.adapter_host_memory_mib:
        return config
    _log.warning(
        "adapter_host_memory_mib is %g, and %s has room for %.0f: that is used",
        config.adapter_host_memory_mib, run_dir, room_mib,
    )  # fmt: skip
    return msgspec.structs.replace(config, adapter_host_memory_mib=room_mib)


def is_in_memory(device: int, mounts: str) -> bool:
    """Return whether a file system, by its device, keeps files in memory.

    ``mounts`` is the content of /proc/self/mountinfo, see proc(5).
    """
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == number:
            return after.split()[0] in MEMORY_TYPES
    return False  # mounted where this process does not see it, as in some containers
