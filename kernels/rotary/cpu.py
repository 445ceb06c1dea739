"""rotary_ in C for CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from weft.kernels.native.library import NUMBER, POINTER, beside

library = beside(__file__, weft_rotary=[None, *[POINTER] * 4, *[NUMBER] * 5])


def rotary_(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
    """Do what ``reference.rotary_`` does, in float32; heads are contiguous, and so are tables."""
    assert x.dtype == cos.dtype == sin.dtype == torch.float32
    assert positions.dtype == torch.int64
    assert x.stride(2) == 1
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    tokens, heads, size = x.shape
    kernel = library()
    assert kernel is not None
    kernel.weft_rotary(
        x.data_ptr(), cos.data_ptr(), sin.data_ptr(), positions.data_ptr(),
        tokens, heads, size // 2, x.stride(0), x.stride(1),
    )  # fmt: skip
