"""silu_mul in C for CPUs.

torch computes the elements that are left over of a vector in another way than the others, and which
ones are left over depends on how it splits the batch among threads.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from weft.kernels.native.library import NUMBER, POINTER, beside
from weft.kernels.native.program import Operation, empty


class _Product(ctypes.Structure):
    """``product`` in cpu.c."""

    _fields_ = [
        *((name, POINTER) for name in ("out", "gate_up")),
        *((name, NUMBER) for name in ("stride", "columns")),
    ]


library = beside(__file__)
_multiply = Operation(library, "weft_silu_mul")


def silu_mul(gate_up: Tensor) -> Tensor:
    """Compute what ``reference.silu_mul`` computes, in float32."""
    assert gate_up.dtype == torch.float32
    assert gate_up.stride(1) == 1
    tokens, columns = len(gate_up), gate_up.shape[1] // 2
    out = empty(tokens, columns)
    arguments = _Product(out.data_ptr(), gate_up.data_ptr(), gate_up.stride(0), columns)
    work = 8 * tokens * columns
    _multiply(arguments, tokens, reads=[gate_up], writes=[out], work=work)
    return out
