"""take_rows in C for CPUs."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from weft.kernels.native.library import NUMBER, POINTER, beside
from weft.kernels.native.program import Operation, empty


class _Taking(ctypes.Structure):
    """``taking`` in cpu.c."""

    _fields_ = [
        *((name, POINTER) for name in ("out", "x", "indices")),
        *((name, NUMBER) for name in ("columns", "stride")),
    ]


library = beside(__file__)
_take = Operation(library, "weft_take_rows")


def take_rows(x: Tensor, indices: Tensor) -> Tensor:
    """Compute what ``reference.take_rows`` computes, of float32; each row is contiguous."""
    assert x.dtype == torch.float32
    assert indices.dtype == torch.int64
    assert x.stride(1) == 1
    assert indices.is_contiguous()
    count, columns = len(indices), x.shape[1]
    out = empty(count, columns)
    arguments = _Taking(out.data_ptr(), x.data_ptr(), indices.data_ptr(), columns, x.stride(0))
    _take(arguments, count, reads=[x], writes=[out], work=2 * count * columns)
    return out
