"""What kv_write does, in plain torch."""

from __future__ import annotations

from torch import Tensor


def kv_write(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Store each token's key and value at its place.

    Args:
        key: [T, kv_heads, d].
        value: [T, kv_heads, d].
        k_cache: [pages, page_tokens, kv_heads, d], written in place.
        v_cache: like k_cache.
        slots: [T] int64, ``page * page_tokens + offset``; no two equal.
    """
    k_cache.view(-1, *k_cache.shape[2:]).index_copy_(0, slots, key)
    v_cache.view(-1, *v_cache.shape[2:]).index_copy_(0, slots, value)
