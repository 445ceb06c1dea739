"""paged_attention in C for CPUs: keys and values are read where they lie."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft.kernels.native import build

Ints = NDArray[np.int64]

# Heads are computed in vectors of at most so many floats, and have no rest.
WIDTH_MAX = 16

# Queries of a prompt that read the same keys together.
TILE_TOKENS = 4


class _Work(ctypes.Structure):
    """``work`` in cpu.c."""

    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("out", "q", "k", "v", "tiles", "positions", "pages")
        ),
        *(
            (name, ctypes.c_int64)
            for name in (
                "pages_max", "page_stride", "page_tokens", "heads", "kv_heads", "size", "window",
            )
        ),
        ("scale", ctypes.c_float),
    ]  # fmt: skip


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernel, None if there is none on this machine."""
    found = build.load(Path(__file__).with_name("cpu.c"))
    if found is not None:
        found.weft_paged_attention.restype = ctypes.c_int
        found.weft_paged_attention.argtypes = [
            ctypes.POINTER(_Work), ctypes.c_int64, ctypes.c_int64,
        ]  # fmt: skip
    return found


def serves(head_dim: int, device: torch.device) -> bool:
    """Return whether this kernel can be used."""
    return device.type == "cpu" and head_dim % WIDTH_MAX == 0 and library() is not None


class Plan:
    """How one step's rows attend: made once, used in every layer."""

    def __init__(self, page_table: Ints, starts: Ints, positions: Ints) -> None:
        """Arguments as for the reference, in host memory; no row is empty."""
        counts = np.diff(starts)
        tiles_of = -(-counts // TILE_TOKENS)
        entries = np.repeat(np.arange(len(counts)), tiles_of)
        offsets = np.arange(len(entries)) - np.repeat(np.cumsum(tiles_of) - tiles_of, tiles_of)
        firsts = starts[entries] + offsets * TILE_TOKENS
        tokens = np.minimum(starts[entries + 1] - firsts, TILE_TOKENS)
        self._tiles = np.stack((firsts, tokens, entries), axis=1).astype(np.int64)
        self._positions = np.ascontiguousarray(positions)
        self._pages = np.ascontiguousarray(page_table)
        self._keys_max = int(positions.max()) + 1

    def attend(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """Compute what ``reference.paged_attention`` computes: float32, whole pages contiguous."""
        q = q.contiguous()
        assert q.dtype == k_cache.dtype == v_cache.dtype == torch.float32
        assert k_cache.stride() == v_cache.stride()
        assert k_cache[0].is_contiguous()
        out = torch.empty_like(q)
        work = _Work(
            out.data_ptr(), q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(),
            self._tiles.ctypes.data, self._positions.ctypes.data, self._pages.ctypes.data,
            self._pages.shape[1], k_cache.stride(0), k_cache.shape[1], q.shape[1],
            k_cache.shape[2], q.shape[2], window or 0, scale,
        )  # fmt: skip
        kernel = library()
        assert kernel is not None
        if kernel.weft_paged_attention(ctypes.byref(work), len(self._tiles), self._keys_max):
            raise MemoryError(f"no memory for the scores of {self._keys_max} keys")
        return out
