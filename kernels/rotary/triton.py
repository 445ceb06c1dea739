"""rotary_ in Triton. See reference.py for what it computes."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Heads of one program: their first and second halves stay in registers.
BLOCK_HEADS = 8


@triton.jit
def _rotary_kernel(
    x_ptr, cos_ptr, sin_ptr, positions_ptr,
    heads, half, row_stride, head_stride,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # One program: BLOCK_N heads of one token. Element d turns with element half + d.
    token = tl.program_id(0)
    head = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    d_ok = d < half
    ok = (head < heads)[:, None] & d_ok[None, :]  # [N, D]

    angle = tl.load(positions_ptr + token).to(tl.int64) * half + d
    cos = tl.load(cos_ptr + angle, mask=d_ok, other=0.0)[None, :]  # [1, D]
    sin = tl.load(sin_ptr + angle, mask=d_ok, other=0.0)[None, :]
    first_ptr = x_ptr + token.to(tl.int64) * row_stride + head[:, None] * head_stride + d[None, :]
    second_ptr = first_ptr + half
    first = tl.load(first_ptr, mask=ok, other=0.0).to(tl.float32)  # [N, D]
    second = tl.load(second_ptr, mask=ok, other=0.0).to(tl.float32)
    tl.store(first_ptr, first * cos - second * sin, mask=ok)
    tl.store(second_ptr, second * cos + first * sin, mask=ok)


def rotary_(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
    """Compute what ``reference.rotary_`` computes, in place; tokens and heads may be strided."""
    tokens, heads, size = x.shape
    half = size // 2
    assert cos.shape[1] == half
    assert x.stride(2) == 1
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    assert positions.is_contiguous()
    if tokens:
        _rotary_kernel[(tokens, triton.cdiv(heads, BLOCK_HEADS))](
            x, cos, sin, positions,
            heads, half, x.stride(0), x.stride(1),
            BLOCK_N=BLOCK_HEADS, BLOCK_D=triton.next_power_of_2(half),
        )  # fmt: skip
