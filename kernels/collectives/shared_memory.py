"""Collectives on one machine's CPU through shared memory, in C."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import time
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from weft.kernels.collectives.peers import Peers
from weft.kernels.collectives.reference import RankLost
from weft.kernels.native import build
from weft.kernels.native.library import NUMBER, POINTER
from weft.kernels.native.program import Operation, recording

# Of one rank's part of a collective; more goes in pieces. Measured with two ranks and 2 to 8 MB:
# 512 and 1024 KiB are best, 64 KiB takes half as long again, 4 MiB a quarter to a half more.
SLOT_BYTES = 512 * 1024

# As in shared_memory.c.
_LINE_BYTES = 128
_PID_OFFSET = 8

_PAGE_BYTES = 4096

# Between two looks at whether another process has come, while all of them are starting.
_POLL_S = 0.002


class _Group(ctypes.Structure):
    """As in shared_memory.c."""

    _fields_ = (
        ("memory", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("slot_bytes", ctypes.c_int64),
        ("timeout_ms", ctypes.c_int64),
        ("pid_fds", ctypes.c_void_p),
        ("rank", ctypes.c_int32),
        ("size", ctypes.c_int32),
        ("number", ctypes.c_uint32),
    )


class _Sum(ctypes.Structure):
    """``sum`` in shared_memory.c."""

    _fields_ = (*((name, POINTER) for name in ("group", "x", "lost")), ("columns", NUMBER))


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled collectives, None if there are none on this machine."""
    found = build.load(Path(__file__).with_name("shared_memory.c"))
    if found is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        found.weft_all_reduce.argtypes = [pointer, pointer, number]
        found.weft_gather.argtypes = [pointer, pointer, pointer, number, number]
        found.weft_broadcast.argtypes = [pointer, pointer, number]
    return found


_sum = Operation(library, "weft_all_reduce_rows")


class SharedMemory:
    """One rank of a group whose processes have mapped the same memory. For one thread."""

    def __init__(
        self, memory: mmap.mmap, peers: Peers, *, rank: int, size: int, timeout_s: float
    ) -> None:
        self.rank = rank
        self.size = size
        self._peers = peers
        self._timeout_s = timeout_s
        found = library()
        assert found is not None
        self._library = found
        # All of it stays where it is as long as this object does.
        self._memory = ctypes.c_char.from_buffer(memory)
        self._fds = (ctypes.c_int32 * size)(*peers.fds)
        address = ctypes.addressof(self._memory)
        self._group = _Group(
            address, address + _slots_offset(size), SLOT_BYTES, round(timeout_s * 1000),
            ctypes.addressof(self._fds), rank, size, 0,
        )  # fmt: skip
        self._address = ctypes.addressof(self._group)
        self._lost = ctypes.c_int32(0)

    def all_reduce(self, x: Tensor) -> None:
        """Replace ``x``, float32, by the sum of every rank's, added in the order of the ranks."""
        assert x.dtype == torch.float32
        assert x.is_contiguous()
        program = recording()
        if program is None:
            self._check(self._library.weft_all_reduce(self._address, x.data_ptr(), x.numel()))
            return
        columns = x.numel() // len(x)
        arguments = _Sum(self._address, x.data_ptr(), ctypes.addressof(self._lost), columns)
        _sum(arguments, len(x), reads=[], writes=[x], work=0)
        program.after_run(self._check_sums)

    def gather(self, x: Tensor) -> Tensor | None:
        """Return [rows, size * columns] on rank 0, None on the others."""
        x = x.contiguous()
        rows, columns = x.shape
        out = x.new_empty(rows, self.size * columns) if self.rank == 0 else None
        lost = self._library.weft_gather(
            self._address, None if out is None else out.data_ptr(), x.data_ptr(), rows,
            columns * x.itemsize,
        )  # fmt: skip
        self._check(lost)
        return out

    def broadcast(self, x: Tensor) -> None:
        """Replace ``x`` by that of rank 0."""
        assert x.is_contiguous()
        self._check(self._library.weft_broadcast(self._address, x.data_ptr(), x.nbytes))

    def _check_sums(self) -> None:
        self._check(self._lost.value)

    def _check(self, lost: int) -> None:
        if lost > 0:
            raise self._peers.ended(lost - 1)
        if lost < 0:
            raise self._peers.late(-lost - 1, self._timeout_s)


def join(
    folder: Path, rank: int, size: int, *, timeout_s: float, name: str = "collectives"
) -> SharedMemory:
    """Return this rank's end, once all ranks have come to the same private ``folder``.

    Leaves nothing there: the file is unlinked as soon as everyone has mapped it. ``timeout_s``
    bounds how long a rank may keep the others waiting, now and later. ``name`` is the group's, for
    ranks may be in several. Raises ``RankLost``.
    """
    path = folder / name
    if rank == 0:
        _create(path, _slots_offset(size) + 2 * size * SLOT_BYTES)
    deadline = time.monotonic() + timeout_s
    while (memory := _map(path)) is None:
        _pause(deadline, f"rank 0 did not come within {timeout_s:g} s")
    struct.pack_into("i", memory, rank * _LINE_BYTES + _PID_OFFSET, os.getpid())
    while not all(pids := [_pid(memory, other) for other in range(size)]):
        _pause(deadline, f"rank {pids.index(0)} did not come within {timeout_s:g} s")
    if rank == 0:
        path.unlink()
    return SharedMemory(memory, Peers(pids), rank=rank, size=size, timeout_s=timeout_s)


def _pause(deadline: float, complaint: str) -> None:
    if time.monotonic() > deadline:
        raise RankLost(complaint)
    time.sleep(_POLL_S)


def _slots_offset(size: int) -> int:
    """Return where the slots begin, behind a line for each rank."""
    return -(-size * _LINE_BYTES // _PAGE_BYTES) * _PAGE_BYTES


def _create(path: Path, size_bytes: int) -> None:
    """Make a file of zeros for this user alone, which appears under its name when it is whole."""
    made = path.with_suffix(".new")
    fd = os.open(made, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        # Not ftruncate: where there is no memory for it, that fails only when it is touched.
        os.posix_fallocate(fd, 0, size_bytes)
    finally:
        os.close(fd)
    made.rename(path)


def _map(path: Path) -> mmap.mmap | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return mmap.mmap(fd, 0)
    finally:
        os.close(fd)


def _pid(memory: mmap.mmap, rank: int) -> int:
    """Return the process of a rank, 0 as long as it has not come."""
    (pid,) = struct.unpack_from("i", memory, rank * _LINE_BYTES + _PID_OFFSET)
    return int(pid)
