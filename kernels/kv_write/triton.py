"""kv_write in Triton. See reference.py for what it does."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Elements of one program: 16 bytes for each thread of 4 warps.
BLOCK_MAX = 1024


@triton.jit
def _kv_write_kernel(
    k_cache_ptr, v_cache_ptr, key_ptr, value_ptr, slots_ptr,
    row, page_tokens, key_stride, value_stride, page_stride,
    BLOCK: tl.constexpr,
):  # fmt: skip
    # One program: BLOCK elements of one token's key and value; ``row`` elements are one token's.
    token = tl.program_id(0)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if slot < 0:
        return
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = element < row
    place = slot // page_tokens * page_stride + slot % page_tokens * row + element
    source = token.to(tl.int64)
    key = tl.load(key_ptr + source * key_stride + element, mask=ok, other=0.0)
    tl.store(k_cache_ptr + place, key, mask=ok)
    value = tl.load(value_ptr + source * value_stride + element, mask=ok, other=0.0)
    tl.store(v_cache_ptr + place, value, mask=ok)


def kv_write(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Do what ``reference.kv_write`` does.

    The caches may be views with any distance from page to page. A token whose slot is negative is
    not written: captured steps are padded with such tokens.
    """
    tokens, heads, size = key.shape
    page_tokens = k_cache.shape[1]
    assert value.shape == key.shape
    assert k_cache.shape == v_cache.shape
    assert k_cache.stride() == v_cache.stride()
    assert k_cache.stride()[1:] == (heads * size, size, 1)
    assert key.stride()[1:] == value.stride()[1:] == (size, 1)
    assert slots.is_contiguous()
    if tokens:
        row = heads * size
        block = min(triton.next_power_of_2(row), BLOCK_MAX)
        _kv_write_kernel[(tokens, triton.cdiv(row, block))](
            k_cache, v_cache, key, value, slots,
            row, page_tokens, key.stride(0), value.stride(0), k_cache.stride(0),
            BLOCK=block,
        )  # fmt: skip
