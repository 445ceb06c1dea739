"""The most likely tokens, in C for CPUs."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from weft.kernels.native.library import NUMBER, POINTER, beside
from weft.kernels.native.program import Operation


class _Search(ctypes.Structure):
    """``search`` in cpu.c."""

    _fields_ = [
        *((name, POINTER) for name in ("values", "found", "logits")),
        *((name, NUMBER) for name in ("tokens", "stride")),
    ]


library = beside(__file__)
_search = Operation(library, "weft_highest")


def highest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return what ``logits.max(dim=-1)`` returns: [R] float32 and [R] int64, the first if equal.

    ``logits`` is [R, V] float32, its rows contiguous. A row with a NaN gives NaN.
    """
    if library() is None:
        most, tokens = logits.max(dim=-1)
        return most, tokens
    assert logits.dtype == torch.float32
    assert logits.stride(1) == 1
    rows, vocabulary = logits.shape
    values, found = torch.empty(rows), torch.empty(rows, dtype=torch.int64)
    arguments = _Search(
        values.data_ptr(), found.data_ptr(), logits.data_ptr(), vocabulary, logits.stride(0)
    )
    _search(arguments, rows, reads=[logits], writes=[values, found], work=logits.numel())
    return values, found
