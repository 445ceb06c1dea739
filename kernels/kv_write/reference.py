"""What kv_write does, in plain torch."""

from __future__ import annotations

from torch import Tensor


def kv_write(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Store each token's key and value at its place, rounded to the cache's type.

    Args:
        key: [T, kv_heads, d].
        value: [T, kv_heads, d].
        k_cache: [pages, page_tokens, kv_heads, d], written in place; pages may lie apart.
        v_cache: like k_cache.
        slots: [T] int64, ``page * page_tokens + offset``; no two equal.
    """
    page_tokens = k_cache.shape[1]
    places = slots // page_tokens, slots % page_tokens
    k_cache[places] = key.to(k_cache.dtype)
    v_cache[places] = value.to(v_cache.dtype)
