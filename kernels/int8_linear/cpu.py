"""Linear layers of rounded weights and inputs in C for CPUs: bytes times bytes.

With the instructions that some processors have for it (VNNI), otherwise with 16-bit ones.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from weft.kernels.int8_linear.reference import round_weight
from weft.kernels.native.library import NUMBER, POINTER, beside
from weft.kernels.native.program import Operation, empty

library = beside(
    __file__,
    weft_int8_panel=[NUMBER],
    weft_int8_panels=[NUMBER, NUMBER, NUMBER],
    weft_int8_row=[NUMBER, NUMBER],
)
_round = Operation(library, "weft_int8_round")
_multiply = Operation(library, "weft_int8_linear")
_pack = Operation(library, "weft_int8_pack")


class _Layer(ctypes.Structure):
    """``layer`` in cpu.c."""

    _fields_ = [
        *((name, NUMBER) for name in ("inputs", "outputs")),
        *((name, POINTER) for name in ("panels", "scales", "bias")),
    ]


class _Rounding(ctypes.Structure):
    """``rounding`` in cpu.c."""

    _fields_ = [
        *((name, POINTER) for name in ("x", "rounded")),
        *((name, NUMBER) for name in ("x_stride", "inputs")),
    ]


class _Product(ctypes.Structure):
    """``product`` in cpu.c."""

    _fields_ = [(name, POINTER) for name in ("layer", "rounded", "y")]


class _Packing(ctypes.Structure):
    """``packing`` in cpu.c."""

    _fields_ = [*((name, POINTER) for name in ("panels", "weights")), ("inputs", NUMBER)]


class Int8Linear:
    """What ``reference.Int8Linear`` computes, the same bits."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """``weight`` is [out, in] of any floating type; ``bias`` is [out] or None."""
        kernel = library()
        assert kernel is not None
        self.out_features, self.in_features = weight.shape
        values, scales = round_weight(weight)
        panels = torch.empty(kernel.weft_int8_panels(*values.shape), dtype=torch.int8)
        packing = _Packing(panels.data_ptr(), values.data_ptr(), self.in_features)
        _pack(packing, len(values), reads=[], writes=[panels], work=4 * values.numel())
        panel = kernel.weft_int8_panel()
        filled = torch.zeros(2, -(-self.out_features // panel) * panel)
        filled[0, : self.out_features] = scales
        if bias is not None:
            filled[1, : self.out_features] = bias
        self._row_floats = kernel.weft_int8_row(self.in_features) // 4
        self._layer = _Layer(
            self.in_features, self.out_features,
            panels.data_ptr(), filled[0].data_ptr(), filled[1].data_ptr(),
        )  # fmt: skip
        self._kept = panels, filled
        self._address = ctypes.addressof(self._layer)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the layer. Rows of ``x`` may lie apart."""
        assert x.dtype == torch.float32
        assert x.stride(1) == 1
        rows = x.shape[0]
        rounded, y = empty(rows, self._row_floats), empty(rows, self.out_features)
        rounding = _Rounding(x.data_ptr(), rounded.data_ptr(), x.stride(0), self.in_features)
        _round(rounding, rows, reads=[x], writes=[rounded], work=4 * x.numel())
        # Reading weights takes as long as multiplying sixteen rows by them.
        work = (rows + 16) * self.in_features * self.out_features // 16
        arguments = _Product(self._address, rounded.data_ptr(), y.data_ptr())
        _multiply(arguments, rows, reads=[rounded], writes=[y], work=work)
        return y
