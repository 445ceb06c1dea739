"""rms_norm in C for CPUs."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
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


class _Addresses(ctypes.Structure):
    """``chosen`` in cpu.c."""

    _fields_ = [*((name, POINTER) for name in ("rows", "weights")), ("count", NUMBER)]


class _NormChosen(ctypes.Structure):
    """``norm_chosen`` in cpu.c."""

    _fields_ = [("norm", _Norm), ("chosen", POINTER)]


library = beside(__file__)
_norm = Operation(library, "weft_rms_norm")
_norm_chosen = Operation(library, "weft_rms_norm_chosen")


class Chosen:
    """Rows of one step that are normed with weights of their own. At first there are none."""

    def __init__(self) -> None:
        self._addresses = _Addresses()
        self.address = ctypes.addressof(self._addresses)
        self.lay_out([])

    def lay_out(self, runs: Sequence[tuple[slice, Tensor]]) -> None:
        """Become those of another step: of each run of rows their weight, [size] float32.

        What a program has recorded with these follows them.
        """
        counts = [rows.stop - rows.start for rows, _ in runs]
        self._weights = [weight for _, weight in runs]
        places = [weight.data_ptr() for weight in self._weights]
        self._rows: NDArray[np.int64] = np.concatenate(
            [np.empty(0, dtype=np.int64), *(np.arange(rows.start, rows.stop) for rows, _ in runs)]
        )
        self._places = np.repeat(np.array(places, dtype=np.uintp), counts)
        found = self._addresses
        found.rows, found.weights = self._rows.ctypes.data, self._places.ctypes.data
        found.count = len(self._rows)


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


def rms_norm_chosen(out: Tensor, x: Tensor, chosen: Chosen, epsilon: float) -> None:
    """Replace in ``out``, what ``rms_norm`` gave of x, the chosen rows by those of their weights.

    The bits are those of ``rms_norm`` of these rows with this weight.
    """
    assert x.dtype == out.dtype == torch.float32
    assert x.stride(-1) == 1
    assert out.is_contiguous()
    heads, head_stride = (1, 0) if x.dim() == 2 else (x.shape[1], x.stride(1))
    norm = _Norm(
        out.data_ptr(), x.data_ptr(), None, None,
        heads, x.shape[-1], x.stride(0), head_stride, epsilon,
    )  # fmt: skip
    _norm_chosen(
        _NormChosen(norm, chosen.address), len(x), reads=[x], writes=[out], work=4 * x.numel()
    )


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
