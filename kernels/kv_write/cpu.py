"""kv_write in C for CPUs."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from weft.kernels.native.library import NUMBER, POINTER, beside
from weft.kernels.native.program import Operation


class _Writing(ctypes.Structure):
    """``writing`` in cpu.c."""

    _fields_ = [
        *((name, POINTER) for name in ("k_pages", "v_pages", "slots", "keys", "values")),
        *(
            (name, NUMBER)
            for name in (
                "key_stride", "value_stride", "size", "page_stride", "page_tokens", "is_half",
            )
        ),
    ]  # fmt: skip


library = beside(__file__)
_write = Operation(library, "weft_kv_write")


def kv_write(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Do what ``reference.kv_write`` does: float32 into float32 or bfloat16.

    A token's heads are contiguous, and so is a page. Both caches have the same strides.
    """
    assert key.dtype == value.dtype == torch.float32
    assert k_cache.dtype == v_cache.dtype
    assert k_cache.dtype in (torch.float32, torch.bfloat16)
    assert slots.dtype == torch.int64
    tokens, kv_heads, size = key.shape
    assert key.stride()[1:] == value.stride()[1:] == (size, 1)
    assert k_cache.stride() == v_cache.stride()
    assert k_cache.stride()[1:] == (kv_heads * size, size, 1)
    arguments = _Writing(
        k_cache.data_ptr(), v_cache.data_ptr(), slots.data_ptr(), key.data_ptr(), value.data_ptr(),
        key.stride(0), value.stride(0), kv_heads * size, k_cache.stride(0), k_cache.shape[1],
        k_cache.dtype == torch.bfloat16,
    )  # fmt: skip
    reads, writes = [key, value], [k_cache, v_cache]
    _write(arguments, tokens, reads=reads, writes=writes, work=4 * key.numel())
