"""What paged_attention computes, in plain torch: one row at a time, obvious, the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    starts: Tensor,
    positions: Tensor,
    *,
    scale: float,
    window: int | None,
    soft_cap: float | None = None,
) -> Tensor:
    """Let each query see the keys of its own row up to its own position.

    Args:
        q: [T, heads, d]; the queries of one row are adjacent.
        k_cache: [pages, page_tokens, kv_heads, d]; heads is a multiple of kv_heads. Pages may lie
            further apart than they are long, and be of another type than q.
        v_cache: like k_cache.
        page_table: [rows, pages_max] int; entries past a row's last page are never read.
        starts: [rows + 1] int; row i's queries are ``starts[i]:starts[i + 1]``.
        positions: [T] int; a query at position p sees the keys at 0 .. p.
        scale: multiplies the scores.
        window: if set, a query at p sees only the keys after ``p - window``.
        soft_cap: if set, a score s becomes ``soft_cap * tanh(s / soft_cap)`` (Gemma 2).

    Returns:
        [T, heads, d], like q.
    """
    out = torch.empty_like(q)
    group = q.shape[1] // k_cache.shape[2]
    for row in range(len(starts) - 1):
        begin, end = int(starts[row]), int(starts[row + 1])
        if begin == end:
            continue
        length = int(positions[end - 1]) + 1
        pages = page_table[row, : -(-length // k_cache.shape[1])].long()
        keys = k_cache[pages].flatten(0, 1)[:length].repeat_interleave(group, dim=1).float()
        values = v_cache[pages].flatten(0, 1)[:length].repeat_interleave(group, dim=1).float()
        scores = torch.einsum("qhd,khd->hqk", q[begin:end].float(), keys) * scale
        if soft_cap is not None:
            scores = soft_cap * (scores / soft_cap).tanh()
        distance = positions[begin:end, None] - torch.arange(length)[None, :]
        hidden = distance < 0
        if window is not None:
            hidden |= distance >= window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
        out[begin:end] = torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)
    return out
