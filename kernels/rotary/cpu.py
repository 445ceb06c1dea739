"""rotary_ in C for CPUs."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from weft.kernels.native.library import NUMBER, POINTER, beside
from weft.kernels.native.program import Operation


class _Rotation(ctypes.Structure):
    """``rotation`` in cpu.c."""

    _fields_ = [
        *((name, POINTER) for name in ("x", "cos", "sin", "positions")),
        *((name, NUMBER) for name in ("heads", "half", "row_stride", "head_stride")),
    ]


library = beside(__file__)
_rotate = Operation(library, "weft_rotary")


def rotary_(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
    """Do what ``reference.rotary_`` does, in float32; heads are contiguous, and so are tables."""
    assert x.dtype == cos.dtype == sin.dtype == torch.float32
    assert positions.dtype == torch.int64
    assert x.stride(2) == 1
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    tokens, heads, size = x.shape
    arguments = _Rotation(
        x.data_ptr(), cos.data_ptr(), sin.data_ptr(), positions.data_ptr(),
        heads, size // 2, x.stride(0), x.stride(1),
    )  # fmt: skip
    _rotate(arguments, tokens, reads=[], writes=[x], work=2 * x.numel())
