"""sgmv in C for CPUs: both products of all segments in one call, in parallel over all of them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from weft.kernels.native.library import NUMBER, POINTER, beside
from weft.kernels.sgmv.granules import PARTS_MAX, Tables
from weft.kernels.sgmv.segments import Segments


class _Adapters(ctypes.Structure):
    """``adapters`` in cpu.c."""

    _fields_ = [
        *(
            (name, POINTER)
            for name in ("arena", "pages", "groups", "a_start", "b_start", "affine_start", "scales")
        ),
        *(
            (name, NUMBER)
            for name in ("layer_bytes", "pages_max", "page_granules", "layers", "sites", "is_half")
        ),
    ]  # fmt: skip


class _Shape(ctypes.Structure):
    """``shape`` in cpu.c."""

    _fields_ = [("inputs", NUMBER), ("parts", NUMBER), ("out", NUMBER * PARTS_MAX)]


class _Batch(ctypes.Structure):
    """``batch`` in cpu.c."""

    _fields_ = [
        *((name, POINTER) for name in ("y", "x", "v", "starts", "slots", "weights", "pieces")),
        *(
            (name, NUMBER)
            for name in ("y_stride", "x_stride", "v_stride", "segments", "layer", "site")
        ),
    ]  # fmt: skip


library = beside(
    __file__, weft_sgmv=[None, *(ctypes.POINTER(kind) for kind in (_Adapters, _Shape, _Batch))]
)


class PagedLora:
    """The adapters whose weights lie in the pages of one arena: float32 or bfloat16."""

    def __init__(self, arena: Tensor, tables: Tables, widths: Sequence[Sequence[int]]) -> None:
        """``arena`` as ``granules.typed`` returns it; ``widths``: by site, columns of each part."""
        assert arena.is_contiguous()
        assert arena.dtype in (torch.float32, torch.bfloat16)
        layers, sites = tables.groups.shape[1:3]
        self._tables = tables
        self._arena = arena  # kept: C has its address
        self._adapters = _Adapters(
            arena.data_ptr(), tables.pages.ctypes.data, tables.groups.ctypes.data,
            tables.a_start.ctypes.data, tables.b_start.ctypes.data,
            tables.affine_start.ctypes.data, tables.scales.ctypes.data,
            arena[0].nbytes, tables.pages.shape[1], arena.shape[2], layers, sites,
            arena.dtype == torch.bfloat16,
        )  # fmt: skip
        self._shapes = [_Shape(0, len(site), (NUMBER * PARTS_MAX)(*site)) for site in widths]

    def add(self, y: Tensor, x: Tensor, layer: int, site: int, segments: Segments) -> None:
        """Add the updates of all segments: y [T, out], x [T, in], float32, rows contiguous."""
        assert x.dtype == y.dtype == torch.float32
        assert x.stride(1) == y.stride(1) == 1
        stride = self._tables.ranks_max
        if stride == 0:
            return
        kernel = library()
        assert kernel is not None
        shape = self._shapes[site]
        shape.inputs = x.shape[1]
        batch = _Batch(
            y.data_ptr(), x.data_ptr(), segments.scratch(len(x) * stride),
            segments.starts_address, segments.slots_address, segments.weights_address,
            segments.pieces_address,
            y.stride(0), x.stride(0), stride, len(segments), layer, site,
        )  # fmt: skip
        kernel.weft_sgmv(self._adapters, shape, batch)
