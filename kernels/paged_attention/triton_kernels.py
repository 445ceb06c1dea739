"""The kernels of triton.py.

Results of a split, and of splits merged, are three: ``top`` [M], the highest score; ``total`` [M],
the sum of the weights relative to it, ``2 ** (score - top)``; and ``sums`` [M, D], the values
summed by these weights. Scores are in powers of two, so that no exponential needs a multiplication.
"""

from __future__ import annotations

import triton
import triton.language as tl

from weft.kernels.paged_attention.schedule import ITEM_FIELDS, MERGE_FIELDS

_ITEM = tl.constexpr(len(ITEM_FIELDS))
_MERGE = tl.constexpr(len(MERGE_FIELDS))


@triton.jit
def _merge(top, total, sums, top_new, total_new, sums_new):
    """Merge the results of a split into those of the splits before it.

    One that saw nothing changes nothing, and merged into nothing a split stays as it is.
    """
    higher = tl.maximum(top, top_new)
    base = tl.where(higher == float("-inf"), 0.0, higher)
    old = tl.exp2(top - base)
    new = tl.exp2(top_new - base)
    # Spelt out, since who contracts two products and a sum may choose either product.
    total = tl.fma(total, old, total_new * new)
    sums = tl.fma(sums, old[:, None], sums_new * new[:, None])
    return higher, total, sums


@triton.jit
def _attend_split(
    q, position, k_ptr, v_ptr, table_ptr,
    begin, end, first, last, kv_head, kv_heads, page_stride, scale, soft_cap, window,
    HAS_SOFT_CAP: tl.constexpr, HAS_WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Return the results of the keys at begin .. end; nobody sees what is not in first .. last."""
    d = tl.arange(0, BLOCK_D)
    d_ok = d < HEAD_DIM
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    sums = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(begin, end, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        n_ok = (n >= first) & (n <= last)
        page = tl.load(table_ptr + n // PAGE_TOKENS, mask=n_ok, other=0)
        in_page = (n % PAGE_TOKENS * kv_heads + kv_head) * HEAD_DIM
        place = page.to(tl.int64) * page_stride + in_page  # [N]
        ok = n_ok[:, None] & d_ok[None, :]
        k = tl.load(k_ptr + place[:, None] + d[None, :], mask=ok, other=0.0)  # [N, D]
        v = tl.load(v_ptr + place[:, None] + d[None, :], mask=ok, other=0.0)  # [N, D]
        if UPCAST:
            k = k.to(tl.float32)
            v = v.to(tl.float32)
        k = k.to(q.dtype)
        v = v.to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # [M, N]
        if HAS_SOFT_CAP:
            # tanh, in a form that no finite score makes NaN.
            scores = soft_cap * (1.0 - 2.0 / (1.0 + tl.exp2(scores)))
        distance = position[:, None] - n[None, :]
        seen = distance >= 0
        if HAS_WINDOW:
            seen = seen & (distance < window)
        scores = tl.where(seen, scores, float("-inf"))

        higher = tl.maximum(top, tl.max(scores, axis=1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])  # [M, N]
        fade = tl.exp2(top - base)
        total = tl.fma(total, fade, tl.sum(weights, axis=1))
        sums = tl.dot(weights.to(v.dtype), v, sums * fade[:, None], input_precision="ieee")
        top = higher
    return top, total, sums


@triton.jit
def attend_kernel(
    out_ptr, sums_ptr, softmax_ptr, q_ptr, k_ptr, v_ptr, counts_ptr, items_ptr, table_ptr,
    heads, kv_heads, token_stride, page_stride, scale, soft_cap, window,
    WHICH: tl.constexpr, HAS_SOFT_CAP: tl.constexpr, HAS_WINDOW: tl.constexpr,
    GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_TOKENS: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Compute items; each is work for HEADS at a time of the GROUP heads that share a key's head.

    Row m of a tile is query m // HEADS of the item, with head m % HEADS. With a soft cap, ``scale``
    makes the power of two in tanh's quotient and ``soft_cap`` makes scores of it; otherwise
    ``scale`` makes scores.
    """
    HEAD_BLOCKS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    parallel = kv_heads * HEAD_BLOCKS
    count = tl.load(counts_ptr + WHICH) * parallel
    table_stride = tl.load(counts_ptr + 3)
    m = tl.arange(0, BLOCK_M)
    query = m // HEADS
    d = tl.arange(0, BLOCK_D)

    work = tl.program_id(0)
    while work < count:
        item_ptr = items_ptr + work // parallel * _ITEM
        token = tl.load(item_ptr).to(tl.int64)
        tokens = tl.load(item_ptr + 1)
        row_table_ptr = table_ptr + tl.load(item_ptr + 2).to(tl.int64) * table_stride
        position = tl.load(item_ptr + 3)
        split_begin = tl.load(item_ptr + 4)
        split_end = tl.load(item_ptr + 5)
        kv_head = work % parallel // HEAD_BLOCKS
        in_group = work % HEAD_BLOCKS * HEADS + m % HEADS
        head = kv_head * GROUP + in_group  # [M]
        row_ok = (query < tokens) & (in_group < GROUP)
        ok = row_ok[:, None] & (d < HEAD_DIM)[None, :]  # [M, D]
        q_row = q_ptr + (token + query) * token_stride + head * HEAD_DIM
        q = tl.load(q_row[:, None] + d[None, :], mask=ok, other=0.0)  # [M, D]
        if UPCAST:
            q = q.to(tl.float32)

        # The first and the last position that some query of the tile sees.
        last = position + tokens - 1
        first = 0
        if HAS_WINDOW:
            first = tl.maximum(position - window + 1, 0)
        split_begin = tl.maximum(split_begin, first // SPLIT)
        top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        sums = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for split in range(split_begin, split_end):
            # Tiles begin at multiples of BLOCK_N whatever the window is.
            begin = tl.maximum(split * SPLIT, first // BLOCK_N * BLOCK_N)
            end = tl.minimum(split * SPLIT + SPLIT, last + 1)
            split_top, split_total, split_sums = _attend_split(
                q, position + query, k_ptr, v_ptr, row_table_ptr,
                begin, end, first, last, kv_head, kv_heads, page_stride, scale, soft_cap, window,
                HAS_SOFT_CAP, HAS_WINDOW, HEAD_DIM, PAGE_TOKENS, BLOCK_M, BLOCK_N, BLOCK_D, UPCAST,
            )  # fmt: skip
            top, total, sums = _merge(top, total, sums, split_top, split_total, split_sums)

        # Not read before the loop, which needs every register.
        partial = tl.load(item_ptr + 6).to(tl.int64)
        if partial < 0:
            # Rows that pad the tile may have seen nothing.
            result = sums / tl.where(row_ok, total, 1.0)[:, None]
            out_row = out_ptr + ((token + query) * heads + head) * HEAD_DIM
            tl.store(out_row[:, None] + d[None, :], result, mask=ok)
        elif split_begin < split_end:
            slot = (partial + split_begin * tokens + query) * heads + head  # [M]
            tl.store(softmax_ptr + slot * 2, top, mask=row_ok)
            tl.store(softmax_ptr + slot * 2 + 1, total, mask=row_ok)
            tl.store(sums_ptr + slot[:, None] * HEAD_DIM + d[None, :], sums, mask=ok)
        work += tl.num_programs(0)


@triton.jit
def merge_kernel(
    out_ptr, sums_ptr, softmax_ptr, counts_ptr, merges_ptr, heads, window,
    WHICH: tl.constexpr, HAS_WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Merge the splits of queries that were computed one by one, BLOCK_H heads at a time."""
    blocks = (heads + BLOCK_H - 1) // BLOCK_H
    count = tl.load(counts_ptr + WHICH) * blocks
    d = tl.arange(0, BLOCK_D)
    work = tl.program_id(0)
    while work < count:
        merge_ptr = merges_ptr + work // blocks * _MERGE
        token = tl.load(merge_ptr).to(tl.int64)
        position = tl.load(merge_ptr + 1)
        partial = tl.load(merge_ptr + 2).to(tl.int64)
        partial_stride = tl.load(merge_ptr + 3)
        head = work % blocks * BLOCK_H + tl.arange(0, BLOCK_H)
        head_ok = head < heads
        ok = head_ok[:, None] & (d < HEAD_DIM)[None, :]  # [H, D]
        first = 0
        if HAS_WINDOW:
            first = tl.maximum(position - window + 1, 0) // SPLIT
        top = tl.full((BLOCK_H,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_H,), tl.float32)
        sums = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
        for split in range(first, position // SPLIT + 1):
            slot = (partial + split * partial_stride) * heads + head  # [H]
            split_top = tl.load(softmax_ptr + slot * 2, mask=head_ok, other=0.0)
            split_total = tl.load(softmax_ptr + slot * 2 + 1, mask=head_ok, other=1.0)
            split_ptr = sums_ptr + slot[:, None] * HEAD_DIM + d[None, :]
            split_sums = tl.load(split_ptr, mask=ok, other=0.0)  # [H, D]
            top, total, sums = _merge(top, total, sums, split_top, split_total, split_sums)
        out_row = out_ptr + (token * heads + head) * HEAD_DIM
        tl.store(out_row[:, None] + d[None, :], sums / total[:, None], mask=ok)
        work += tl.num_programs(0)
