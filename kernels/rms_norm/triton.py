"""rms_norm in Triton, with and without a residual. See reference.py for what it computes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Elements of one program's tile: several short rows (heads), or one long one.
TILE_ELEMENTS = 1024

# A row is one tile, held in registers between its sum and its product: 64 of each thread's.
HIDDEN_MAX = 32768


@triton.jit
def _rms_norm_kernel(
    out_ptr, x_ptr, delta_ptr, weight_ptr,
    rows, hidden, epsilon,
    inner, outer_stride, inner_stride, delta_stride,
    HAS_DELTA: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    # One program: BLOCK_R rows, all of hidden. Row r lies at (r // inner, r % inner).
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_ok = row < rows
    h = tl.arange(0, BLOCK_H)
    h_ok = h < hidden
    ok = row_ok[:, None] & h_ok[None, :]  # [R, H]

    outer = (row // inner).to(tl.int64)
    start = outer * outer_stride + (row % inner).to(tl.int64) * inner_stride
    source = x_ptr + start[:, None] + h[None, :]
    x = tl.load(source, mask=ok, other=0.0).to(tl.float32)  # [R, H]
    if HAS_DELTA:
        delta = delta_ptr + row.to(tl.int64)[:, None] * delta_stride + h[None, :]
        x += tl.load(delta, mask=ok, other=0.0).to(tl.float32)
        # The norm is of the sum as it is kept.
        x = x.to(x_ptr.dtype.element_ty)
        tl.store(source, x, mask=ok)
        x = x.to(tl.float32)
    mean = tl.sum(x * x, axis=1) / hidden  # [R]
    # Rounded where the reference rounds, before the weight.
    normed = (x * tl.rsqrt(mean + epsilon)[:, None]).to(out_ptr.dtype.element_ty).to(tl.float32)
    weight = tl.load(weight_ptr + h, mask=h_ok, other=0.0).to(tl.float32)  # [H]
    out = out_ptr + row.to(tl.int64)[:, None] * hidden + h[None, :]
    tl.store(out, normed * weight[None, :], mask=ok)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Compute what ``reference.rms_norm`` computes for [T, hidden] or [T, heads, hidden].

    The last dimension is contiguous; the others may be strided.
    """
    return _launch(x, None, weight, epsilon)


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Compute what ``reference.add_rms_norm`` computes: x [T, hidden] += delta, and its norm."""
    assert x.dim() == 2
    assert delta.shape == x.shape
    assert delta.stride(1) == 1
    return _launch(x, delta, weight, epsilon)


def _launch(x: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
    hidden = x.shape[-1]
    assert 0 < hidden <= HIDDEN_MAX
    assert x.dim() in (2, 3)
    assert x.stride(-1) == 1
    assert weight.is_contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = x.numel() // hidden
    if rows == 0:
        return out
    inner, inner_stride = (1, 0) if x.dim() == 2 else (x.shape[1], x.stride(1))
    block_h = triton.next_power_of_2(hidden)
    block_r = max(1, TILE_ELEMENTS // block_h)
    _rms_norm_kernel[(triton.cdiv(rows, block_r),)](
        out, x, delta, weight,
        rows, hidden, epsilon,
        inner, x.stride(0), inner_stride, 0 if delta is None else delta.stride(0),
        HAS_DELTA=delta is not None, BLOCK_R=block_r, BLOCK_H=block_h,
        num_warps=min(16, max(4, block_h // 1024)),
    )  # fmt: skip
    return out
