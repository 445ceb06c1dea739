"""rms_norm in C for CPUs."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from weft.kernels.native.library import FLOAT, NUMBER, POINTER, beside
from weft.kernels.native.program import Operation, empty


class _Norm(ctypes.Structure):
    """``norm`` in cpu.c."""

    _fields_ = [
        *((name, POINTER) for name in ("out", "x", "delta", "weight")),
        *((name, NUMBER) for name in ("heads", "size", "row_stride", "head_stride")),
        ("epsilon", FLOAT),
    ]


library = beside(__file__)
_norm = Operation(library, "weft_rms_norm")


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Compute what ``reference.rms_norm`` computes, in float32; x is [T, size] or [T, heads, size].

    Rows may lie apart; each is contiguous.
    """
    assert x.dtype == weight.dtype == torch.float32
    assert x.stride(-1) == 1
    heads, head_stride = (1, 0) if x.dim() == 2 else (x.shape[1], x.stride(1))
    out = empty(*x.shape)
    arguments = _Norm(
        out.data_ptr(), x.data_ptr(), None, weight.data_ptr(),
        heads, x.shape[-1], x.stride(0), head_stride, epsilon,
    )  # fmt: skip
    _norm(arguments, len(x), reads=[x], writes=[out], work=4 * x.numel())
    return out


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Compute what ``reference.add_rms_norm`` computes, in float32; all [T, size], contiguous."""
    assert x.dtype == delta.dtype == weight.dtype == torch.float32
    assert x.is_contiguous()
    assert delta.is_contiguous()
    out = empty(*x.shape)
    arguments = _Norm(
        out.data_ptr(), x.data_ptr(), delta.data_ptr(), weight.data_ptr(),
        1, x.shape[1], x.stride(0), 0, epsilon,
    )  # fmt: skip
    _norm(arguments, len(x), reads=[delta], writes=[x, out], work=4 * x.numel())
    return out
