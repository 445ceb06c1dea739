"""sgmv in C for CPUs: both products of all segments in one call, in parallel over all of them."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weft.kernels.native import build
from weft.kernels.sgmv.reference import Part
from weft.kernels.sgmv.segments import Ints, Segments

_POINTERS, _NUMBERS = ctypes.c_void_p, ctypes.c_int64


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernel, None if there is none on this machine."""
    found = build.load(Path(__file__).with_name("cpu.c"))
    if found is not None:
        found.weft_sgmv.restype = None
        found.weft_sgmv.argtypes = [
            _POINTERS, _NUMBERS, _POINTERS, _NUMBERS, _NUMBERS, _POINTERS, _POINTERS, _NUMBERS,
            _POINTERS, _POINTERS, _NUMBERS, _POINTERS,
        ]  # fmt: skip
    return found


class SiteTable:
    """What every slot has at one site of one layer."""

    def __init__(self, slots: int) -> None:
        self._sites: Ints = np.zeros(slots, dtype=np.int64)  # addresses of the structs below
        self._sites_address = self._sites.ctypes.data
        self._ranks = [0] * slots
        self._rank_max = 0
        self._kept: list[tuple[Ints, list[Tensor]] | None] = [None] * slots

    def set(self, slot: int, parts: list[Part]) -> None:
        """Replace what a slot has: float32 on the CPU."""
        if not parts:
            self._put(slot, None, 0)
            return
        a = torch.cat([part.a for part in parts]).contiguous()
        bs = [part.b.t().contiguous() for part in parts]
        fields = [a.shape[0], len(parts), a.data_ptr()]
        for part, b in zip(parts, bs, strict=True):
            fields += [*b.shape[:1], part.column, b.shape[1], b.data_ptr()]
        struct = np.array(fields, dtype=np.int64)
        self._put(slot, (struct, [a, *bs]), a.shape[0])

    def _put(self, slot: int, kept: tuple[Ints, list[Tensor]] | None, rank: int) -> None:
        self._sites[slot] = kept[0].ctypes.data if kept else 0
        self._kept[slot] = kept
        self._ranks[slot] = rank
        self._rank_max = max(self._ranks)

    def add(self, y: Tensor, x: Tensor, segments: Segments) -> None:
        """Add the updates of all segments: y [T, out], x [T, in], float32, rows contiguous."""
        assert x.dtype == y.dtype == torch.float32
        assert x.stride(1) == y.stride(1) == 1
        if self._rank_max == 0:
            return
        kernel = library()
        assert kernel is not None
        kernel.weft_sgmv(
            y.data_ptr(), y.stride(0), x.data_ptr(), x.stride(0), x.shape[1],
            segments.starts_address, segments.slots_address, len(segments),
            self._sites_address, segments.scratch(len(x) * self._rank_max), self._rank_max,
            segments.pieces_address,
        )  # fmt: skip
