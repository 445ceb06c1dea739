"""Memory of the host that is there by the time a step needs it."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading

import torch
from torch import Tensor

# Has the kernel find pages for a range as if each had been written to; Linux 5.14 and later.
_MADV_POPULATE_WRITE = 23

# Asked for at once: a few huge pages.
_PIECE = 16 * 2**20


def zeros(size: int) -> Tensor:
    """Return so many bytes, [size] uint8; in huge pages, where the kernel has them.

    Scattered pieces are then read 5 to 20 % faster. But whoever is the first to write to a huge
    page waits until the kernel has found and cleared it: up to ten milliseconds on a virtual
    machine, in the middle of a step. So a thread goes ahead and asks for all of them.
    """
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    found = torch.frombuffer(memory, dtype=torch.uint8)
    threading.Thread(target=_touch, args=(found,), name="touch", daemon=True).start()
    return found


def _touch(memory: Tensor) -> None:
    """Ask for memory, piece by piece; what cannot be had now is asked for when it is written to."""
    # Steps come first. On Linux this is of the thread alone.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    # Not mmap's own method: it keeps Python waiting.
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start in range(0, len(memory), _PIECE):
        length = min(_PIECE, len(memory) - start)
        if madvise(memory.data_ptr() + start, length, _MADV_POPULATE_WRITE) != 0:
            return
