"""sgmv in C for CPUs: both products of all segments in one call, in parallel over all of them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from weft.kernels.native.library import NUMBER, POINTER, beside
from weft.kernels.native.program import Operation
from weft.kernels.sgmv.granules import PARTS_MAX, Tables
from weft.kernels.sgmv.segments import Segments


class _Adapters(ctypes.Structure):
    """``adapters`` in cpu.c."""

    _fields_ = [
        *(
            (name, POINTER)
            for name in (
                "arena", "pages", "groups", "a_start", "b_start", "affine_start", "scales", "v",
            )
        ),
        *(
            (name, NUMBER)
            for name in (
                "layer_bytes", "pages_max", "page_granules", "layers", "sites", "is_half",
                "v_stride",
            )
        ),
    ]  # fmt: skip


class _Update(ctypes.Structure):
    """``update`` in cpu.c."""

    _fields_ = [
        *((name, POINTER) for name in ("adapters", "segments", "y", "x")),
        *((name, NUMBER) for name in ("y_stride", "x_stride", "layer", "site", "inputs", "parts")),
        ("out", NUMBER * PARTS_MAX),
    ]


library = beside(__file__)
_shrink = Operation(library, "weft_sgmv_shrink")
_expand = Operation(library, "weft_sgmv_expand")


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
            tables.affine_start.ctypes.data, tables.scales.ctypes.data, None,
            arena[0].nbytes, tables.pages.shape[1], arena.shape[2], layers, sites,
            arena.dtype == torch.bfloat16,
        )  # fmt: skip
        self._address = ctypes.addressof(self._adapters)
        self._widths = [(NUMBER * PARTS_MAX)(*site) for site in widths]
        self._parts = [len(site) for site in widths]
        self._v = torch.empty(1)

    def reserve(self, rows: int, row_adapters: int) -> None:
        """Make room for what shrink gives for so many rows with the adapters that there are now.

        A row has at most ``row_adapters`` of them.
        """
        ranks = self._tables.ranks_max
        if len(self._v) < row_adapters * rows * ranks:
            self._v = torch.empty(row_adapters * rows * ranks)
        self._adapters.v, self._adapters.v_stride = self._v.data_ptr(), ranks

    def add(self, y: Tensor, x: Tensor, layer: int, site: int, segments: Segments) -> None:
        """Add the updates of all segments: y [T, out], x [T, in], float32, rows contiguous.

        A program that records this is to ``reserve`` before each run.
        """
        assert x.dtype == y.dtype == torch.float32
        assert x.stride(1) == y.stride(1) == 1
        self.reserve(len(x), segments.row_adapters)
        inputs = x.shape[1]
        arguments = _Update(
            self._address, segments.address, y.data_ptr(), x.data_ptr(), y.stride(0), x.stride(0),
            layer, site, inputs, self._parts[site], self._widths[site],
        )  # fmt: skip
        # As if there were no adapter without one of eight ranks for each module.
        work = 8 * len(x) * (inputs + y.shape[1])
        _shrink(arguments, len(x), reads=[x], writes=[self._v], work=work)
        _expand(arguments, len(x), reads=[self._v], writes=[y], work=work)
