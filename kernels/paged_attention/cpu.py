"""paged_attention in C for CPUs: keys and values are read where they lie."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft.kernels.native.library import FLOAT, NUMBER, POINTER, beside
from weft.kernels.native.program import Operation, empty

Ints = NDArray[np.int64]

# Heads are computed in vectors of at most so many floats, and have no rest.
WIDTH_MAX = 16

# Queries of a prompt that read the same keys together.
TILE_TOKENS = 4

# As in cpu.c: how many queries' scores a thread keeps, and what there is room for behind the last.
QUERIES, KEYS = 8, 8


class _Plan(ctypes.Structure):
    """``plan`` in cpu.c."""

    _fields_ = [
        *((name, POINTER) for name in ("tiles", "positions", "pages", "scores")),
        *((name, NUMBER) for name in ("count", "pages_max", "scores_stride")),
    ]


class _Work(ctypes.Structure):
    """``work`` in cpu.c."""

    _fields_ = [
        *((name, POINTER) for name in ("out", "q", "k", "v", "plan")),
        *(
            (name, NUMBER)
            for name in (
                "q_stride", "page_stride", "page_tokens", "heads", "kv_heads", "size", "window",
                "is_half",
            )
        ),
        ("scale", FLOAT),
    ]  # fmt: skip


library = beside(__file__)
_attend = Operation(library, "weft_paged_attention")


def serves(head_dim: int, device: torch.device) -> bool:
    """Return whether this kernel can be used."""
    return device.type == "cpu" and head_dim % WIDTH_MAX == 0 and library() is not None


class Plan:
    """How one step's rows attend: made once, used in every layer."""

    def __init__(self, page_table: Ints, starts: Ints, positions: Ints) -> None:
        """Arguments as for the reference, in host memory; no row is empty."""
        self._plan = _Plan()
        self._scores = torch.empty(0)
        self.lay_out(page_table, starts, positions)

    def lay_out(self, page_table: Ints, starts: Ints, positions: Ints) -> None:
        """Become the plan of another step. What a program has recorded of this one follows it."""
        counts = np.diff(starts)
        tiles_of = -(-counts // TILE_TOKENS)
        entries = np.repeat(np.arange(len(counts)), tiles_of)
        offsets = np.arange(len(entries)) - np.repeat(np.cumsum(tiles_of) - tiles_of, tiles_of)
        firsts = starts[entries] + offsets * TILE_TOKENS
        tokens = np.minimum(starts[entries + 1] - firsts, TILE_TOKENS)
        self._tiles = np.stack((firsts, tokens, entries), axis=1).astype(np.int64)
        self._positions = np.ascontiguousarray(positions)
        self._pages = np.ascontiguousarray(page_table)
        self._keys = int(positions.sum()) + len(positions)
        stride = int(positions.max()) + 1 + KEYS
        size = torch.get_num_threads() * QUERIES * stride
        if len(self._scores) < size:
            self._scores = torch.empty(size)
        plan = self._plan
        plan.tiles, plan.positions = self._tiles.ctypes.data, self._positions.ctypes.data
        plan.pages, plan.pages_max = self._pages.ctypes.data, self._pages.shape[1]
        plan.scores, plan.scores_stride = self._scores.data_ptr(), stride
        plan.count = len(self._tiles)

    def attend(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """Compute what ``reference.paged_attention`` computes, in float32.

        q is float32, its tokens may lie apart. The caches are float32 or bfloat16; each page is
        contiguous, and they lie equally far apart in both caches.
        """
        assert q.dtype == torch.float32
        assert q.stride()[1:] == (q.shape[2], 1)
        assert k_cache.dtype == v_cache.dtype
        assert k_cache.dtype in (torch.float32, torch.bfloat16)
        tokens, heads, _ = q.shape
        _, page_tokens, kv_heads, size = k_cache.shape
        assert k_cache.stride() == v_cache.stride()
        assert k_cache.stride()[1:] == (kv_heads * size, size, 1)
        out = empty(*q.shape)
        arguments = _Work(
            out.data_ptr(), q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(),
            ctypes.addressof(self._plan), q.stride(0), k_cache.stride(0), page_tokens, heads,
            kv_heads, size, window or 0, k_cache.dtype == torch.bfloat16, scale,
        )  # fmt: skip
        work = self._keys * heads * size
        _attend(arguments, tokens, reads=[q, k_cache, v_cache], writes=[out], work=work)
        return out
