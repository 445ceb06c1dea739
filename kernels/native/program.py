"""Operations in C on a CPU: computed one by one, or recorded and then computed in one go.

Each operation is a function that the threads of a team call together (team.h), with its arguments
in a structure, and the batch's rows. While a ``Program`` records, nothing is computed: the calls
are kept, with the addresses of what they read and write. Running the program computes them all,
for any number of rows, in the time that the work takes: threads are woken once, and Python is gone.
What changes from step to step has to lie where it lay, as in a CUDA graph.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft.kernels.native.library import NUMBER, POINTER, runner

Floats = NDArray[np.float32]

# Multiplications that take one thread as long as it takes to wake the others, some 20 us.
WORTH_THREADS = 1 << 19

_recording: ContextVar[Program | None] = ContextVar("recording", default=None)


class _Call(ctypes.Structure):
    """``call`` in program.c."""

    _fields_ = [
        *((name, POINTER) for name in ("compute", "arguments", "rows")), ("waits", NUMBER),
        ("rest", NUMBER * 4), ("progress", NUMBER * 8),
    ]  # fmt: skip


class Operation:
    """A C function that a team computes."""

    def __init__(self, library: Callable[[], ctypes.CDLL | None], name: str) -> None:
        """``library`` as ``beside`` returns it."""
        self._library = library
        self._name = name

    @cached_property
    def _address(self) -> int | None:
        found = self._library()
        assert found is not None
        return ctypes.cast(found[self._name], POINTER).value

    def __call__(
        self,
        arguments: ctypes.Structure,
        rows: int,
        *,
        reads: Sequence[Tensor],
        writes: Sequence[Tensor],
        work: int,
    ) -> None:
        """Compute it, or let a program record it.

        Args:
            arguments: as the function expects them; a program keeps them.
            rows: of the batch; a program is told each time.
            reads: the tensors that it reads and that some operation writes.
            writes: the tensors that it writes.
            work: multiplications, by which it is decided whether threads are woken.
        """
        program = _recording.get()
        if program is not None:
            program.add(self._address, arguments, reads, writes)
        else:
            run_one(self._address, arguments, rows, work)


def run_one(function: int | None, arguments: ctypes.Structure, rows: int, work: int) -> None:
    """Compute an operation as ``Operation`` does."""
    found = runner()
    assert found is not None
    count = NUMBER(rows)
    call = _Call(function, ctypes.addressof(arguments), ctypes.addressof(count))
    threads = torch.get_num_threads() if work > WORTH_THREADS else 1
    found.weft_run(ctypes.addressof(call), 1, threads)


def recording() -> Program | None:
    """Return the program that records what this thread computes, if one does."""
    return _recording.get()


def empty(*shape: int) -> Tensor:
    """Return a float32 tensor for what an operation writes, of a program's own if one records."""
    program = _recording.get()
    return torch.empty(shape) if program is None else program.memory.empty(shape)


class Program:
    """A list of operations. For one thread at a time; its tensors are overwritten by each run.

    What operations were given, such as weights, has to live as long as the program: it keeps what
    they returned, and knows of the rest where it lies.
    """

    def __init__(self, *counts: str) -> None:
        """``counts`` name what is counted: the rows of some operations are so many."""
        self.memory = _Memory()
        self._counts = {name: NUMBER() for name in counts}
        self._counted: ctypes.c_int64 | None = None
        self._calls: list[_Call] = []
        self._arguments: list[ctypes.Structure] = []
        # What the operations touch since the team has last waited, by where its memory begins.
        self._read: set[int] = set()
        self._written: set[int] = set()
        self._array: ctypes.Array[_Call] | None = None
        self._after_run: set[Callable[[], None]] = set()

    @contextmanager
    def record(self, count: str) -> Iterator[None]:
        """Keep every operation that this thread computes meanwhile, in place of computing it.

        They get as many rows as ``count`` is in a run.
        """
        self._counted = self._counts[count]
        before = _recording.set(self)
        try:
            yield
        finally:
            _recording.reset(before)
        self._array = (_Call * len(self._calls))(*self._calls)

    def add(
        self,
        function: int | None,
        arguments: ctypes.Structure,
        reads: Sequence[Tensor],
        writes: Sequence[Tensor],
    ) -> None:
        """Append an operation; it waits for those before it if it has to."""
        read = {tensor.untyped_storage().data_ptr() for tensor in reads}
        written = {tensor.untyped_storage().data_ptr() for tensor in writes}
        waits = bool(self._written & (read | written) or self._read & written)
        if waits:
            self._read.clear()
            self._written.clear()
        self._read |= read
        self._written |= written
        assert self._counted is not None
        count = ctypes.addressof(self._counted)
        self._arguments.append(arguments)
        self._calls.append(_Call(function, ctypes.addressof(arguments), count, waits))

    @property
    def waits(self) -> list[bool]:
        """Whether each operation waits for all before it."""
        return [bool(call.waits) for call in self._calls]

    def after_run(self, check: Callable[[], None]) -> None:
        """Have ``check`` called, once, whenever all operations have been computed."""
        self._after_run.add(check)

    def run(self, **counts: int) -> None:
        """Compute all operations for so many rows."""
        found = runner()
        assert found is not None
        assert self._array is not None, "nothing has been recorded"
        for name, count in counts.items():
            self._counts[name].value = count
        found.weft_run(self._array, len(self._array), torch.get_num_threads())
        for check in self._after_run:
            check()


class _Memory:
    """Memory of a program. What no tensor lies in any more is used again, as while computing."""

    def __init__(self) -> None:
        self._free: dict[int, list[Floats]] = {}

    def empty(self, shape: Sequence[int]) -> Tensor:
        """Return a float32 tensor, which may lie where one lay that nobody holds any more."""
        size = math.prod(shape)
        free = self._free.setdefault(size, [])
        memory: Floats = free.pop() if free else torch.empty(size).numpy()
        # The tensor and all its views hold on to this array, and to nothing else.
        held = memory.view()
        weakref.finalize(held, free.append, memory).atexit = False
        return torch.from_numpy(held).view(*shape)
