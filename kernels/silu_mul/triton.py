"""silu_mul in Triton. See reference.py for what it computes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Columns of one program: with 4 warps each thread moves 16 bytes of each half at a time.
BLOCK = 1024


@triton.jit
def _silu_mul_kernel(out_ptr, gate_up_ptr, columns, row_stride, BLOCK: tl.constexpr):
    # One program: BLOCK columns of one row.
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    column_ok = column < columns
    source = gate_up_ptr + row * row_stride + column  # [BLOCK]
    gate = tl.load(source, mask=column_ok, other=0.0).to(tl.float32)
    up = tl.load(source + columns, mask=column_ok, other=0.0).to(tl.float32)
    # Rounded where the reference rounds.
    silu = (gate / (1.0 + tl.exp(-gate))).to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + row * columns + column, silu * up, mask=column_ok)


def silu_mul(gate_up: Tensor) -> Tensor:
    """Compute what ``reference.silu_mul`` computes; rows may be strided."""
    tokens, columns = len(gate_up), gate_up.shape[1] // 2
    assert gate_up.stride(1) == 1
    out = torch.empty(tokens, columns, dtype=gate_up.dtype, device=gate_up.device)
    if tokens:
        grid = (tokens, triton.cdiv(columns, BLOCK))
        _silu_mul_kernel[grid](out, gate_up, columns, gate_up.stride(0), BLOCK=BLOCK)
    return out
