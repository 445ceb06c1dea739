"""Products with matrices in granules, in C for CPUs."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from weft.kernels.native.library import NUMBER, POINTER, beside
from weft.kernels.paged_matrix.reference import Matrix


class _Matrix(ctypes.Structure):
    """``matrix`` in cpu.c."""

    _fields_ = [
        *((name, POINTER) for name in ("granules", "places")),
        *((name, NUMBER) for name in ("rows", "columns", "is_half")),
    ]


library = beside(
    __file__,
    weft_matrix_times=[None, ctypes.POINTER(_Matrix), POINTER, NUMBER, POINTER],
    weft_matrix_times_transposed=[None, ctypes.POINTER(_Matrix), POINTER, NUMBER, POINTER],
)


def times(m: Matrix, v: Tensor) -> Tensor:
    """Compute what ``reference.times`` computes, in float32. A row's bits depend on it alone."""
    assert v.shape[1] == m.rows
    v, y = _float32(v), torch.empty(len(v), m.columns)
    kernel = library()
    assert kernel is not None
    kernel.weft_matrix_times(_struct(m), v.data_ptr(), len(v), y.data_ptr())
    return y


def times_transposed(m: Matrix, x: Tensor) -> Tensor:
    """Compute what ``reference.times_transposed`` computes, likewise."""
    assert x.shape[1] == m.columns
    x, y = _float32(x), torch.empty(len(x), m.rows)
    kernel = library()
    assert kernel is not None
    kernel.weft_matrix_times_transposed(_struct(m), x.data_ptr(), len(x), y.data_ptr())
    return y


def _float32(x: Tensor) -> Tensor:
    assert x.dtype == torch.float32
    return x.contiguous()


def _struct(m: Matrix) -> _Matrix:
    assert m.granules.dtype in (torch.float32, torch.bfloat16)
    assert m.granules.is_contiguous()
    assert m.places.is_contiguous()
    return _Matrix(
        m.granules.data_ptr(), m.places.data_ptr(), m.rows, m.columns,
        m.granules.dtype == torch.bfloat16,
    )  # fmt: skip
