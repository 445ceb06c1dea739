"""rms_norm in C for CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from weft.kernels.native.library import FLOAT, NUMBER, POINTER, beside

library = beside(
    __file__,
    weft_rms_norm=[None, *[POINTER] * 3, FLOAT, *[NUMBER] * 5],
    weft_add_rms_norm=[None, *[POINTER] * 4, FLOAT, *[NUMBER] * 2],
)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Compute what ``reference.rms_norm`` computes, in float32; x is [T, size] or [T, heads, size].

    Rows may lie apart; each is contiguous.
    """
    assert x.dtype == weight.dtype == torch.float32
    assert x.stride(-1) == 1
    heads, head_stride = (1, 0) if x.dim() == 2 else (x.shape[1], x.stride(1))
    out = torch.empty(x.shape)
    kernel = library()
    assert kernel is not None
    kernel.weft_rms_norm(
        out.data_ptr(), x.data_ptr(), weight.data_ptr(), epsilon,
        x.shape[0], heads, x.shape[-1], x.stride(0), head_stride,
    )  # fmt: skip
    return out


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Compute what ``reference.add_rms_norm`` computes, in float32; all [T, size], contiguous."""
    assert x.dtype == delta.dtype == weight.dtype == torch.float32
    assert x.is_contiguous()
    assert delta.is_contiguous()
    out = torch.empty(x.shape)
    kernel = library()
    assert kernel is not None
    kernel.weft_add_rms_norm(
        out.data_ptr(), x.data_ptr(), delta.data_ptr(), weight.data_ptr(), epsilon, *x.shape
    )
    return out
