"""What kv_write does, in plain torch."""

from __future__ import annotations

from torch import Tensor


def kv_write(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Store each token's key and value at its place.

    Args:
        key: [T, kv_heads, d].
        value: [T, kv_heads, d].
        k_cache: [pages, page_tokens, kv_heads, d], written in place; pages may lie apart.
        v_cache: like k_cache.
        slots: [T] int64, ``page * page_tokens + offset``; no two equal.
    """
    places = slots // k_cache.shape[1], slots % k_cache.shape[1]
    k_cache.index_put_(places, key)
    v_cache.index_put_(places, value)
