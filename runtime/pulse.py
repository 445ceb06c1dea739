"""A count that a process raises as long as it gets on, read by its launcher from outside.

It lies in memory that both have mapped. A watchdog inside a process stops with it, and a message
can wait in a queue; this does neither.
"""

from __future__ import annotations

import ctypes
import mmap
import os

_BYTES = ctypes.sizeof(ctypes.c_uint64)

# Looks in a row that see the same count before a process is called stuck. Looks are counted and not
# seconds: if the launcher was stopped too, or the whole machine, nobody is blamed for it.
LOOKS = 8


class Pulse:
    """The process's end."""

    def __init__(self, fd: int) -> None:
        """Map the memory that ``Watch`` has made."""
        self._memory = mmap.mmap(fd, _BYTES)
        self._count = ctypes.c_uint64.from_buffer(self._memory)

    def beat(self) -> None:
        """Say that something was done, or that there is nothing to do."""
        self._count.value += 1


class Watch:
    """The launcher's end. The memory has no name, and goes with the last who has mapped it."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("weft-pulse", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, _BYTES)
        self._seen = b""
        self.looks = 0  # in a row that have seen the same

    def look(self) -> bool:
        """Return whether the process is stuck: ``LOOKS`` looks have seen no beat."""
        seen = os.pread(self.fd, _BYTES, 0)
        self.looks = self.looks + 1 if seen == self._seen else 0
        self._seen = seen
        return self.looks >= LOOKS

    def close(self) -> None:
        """Give the memory up."""
        os.close(self.fd)
