"""Packed linear layers in C for CPUs.

Measured on one thread beside oneDNN's packed float32 layer, both with AVX-512 or both with AVX2:
bfloat16 weights take 0.3 to 0.45 of its time for 1 to 8 tokens, where reading them is what takes
time, and 0.9 to 0.95 for 128 and more, where multiplying is.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from weft.kernels.native.library import NUMBER, POINTER, beside
from weft.kernels.native.program import Operation, empty

library = beside(__file__, weft_linear_panel=[NUMBER])
_multiply = Operation(library, "weft_linear")
_pack = Operation(library, "weft_linear_pack")

# As they are numbered in cpu.c.
_STORAGES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class _Layer(ctypes.Structure):
    """``layer`` in cpu.c."""

    _fields_ = [
        *((name, NUMBER) for name in ("storage", "inputs", "outputs")),
        *((name, POINTER) for name in ("panels", "bias")),
    ]


class _Product(ctypes.Structure):
    """``product`` in cpu.c."""

    _fields_ = [*((name, POINTER) for name in ("layer", "x", "y")), ("x_stride", NUMBER)]


class _Packing(ctypes.Structure):
    """``packing`` in cpu.c."""

    _fields_ = [
        *((name, POINTER) for name in ("panels", "weights")),
        *((name, NUMBER) for name in ("inputs", "size_bytes")),
    ]


class PackedLinear:
    """``y = x W^T + bias`` in float32: x [T, in] float32, W [out, in], y [T, out] float32.

    Weights stay in the memory of their type and are widened in registers: float32, bfloat16 and
    float16 are multiplied exactly as they are. A row's bits do not depend on the other rows.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """``weight`` is [out, in] float32, bfloat16 or float16; ``bias`` is [out] or None."""
        kernel = library()
        assert kernel is not None
        self.out_features, self.in_features = weight.shape
        weight = weight.contiguous()
        panel = kernel.weft_linear_panel()
        outputs = -(-self.out_features // panel) * panel
        panels = torch.empty(outputs * self.in_features, dtype=weight.dtype)
        packing = _Packing(panels.data_ptr(), weight.data_ptr(), self.in_features, weight.itemsize)
        _pack(packing, len(weight), reads=[], writes=[panels], work=4 * weight.numel())
        filled = torch.zeros(outputs)
        if bias is not None:
            filled[: self.out_features] = bias
        self._layer = _Layer(
            _STORAGES[weight.dtype], self.in_features, self.out_features,
            panels.data_ptr(), filled.data_ptr(),
        )  # fmt: skip
        self._kept = panels, filled
        self._address = ctypes.addressof(self._layer)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the layer. Rows of ``x`` may lie apart."""
        assert x.dtype == torch.float32
        assert x.stride(1) == 1
        rows = x.shape[0]
        y = empty(rows, self.out_features)
        # Reading weights takes as long as multiplying four rows by them.
        work = (rows + 4) * self.in_features * self.out_features // 4
        arguments = _Product(self._address, x.data_ptr(), y.data_ptr(), x.stride(0))
        _multiply(arguments, rows, reads=[x], writes=[y], work=work)
        return y
