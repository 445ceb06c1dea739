"""paged_attention for devices without a kernel of their own: few padded calls, no loop over rows.

Rows are put into groups of similar query count and length. A group's keys are gathered into one
padded tensor, its query heads are folded into the query axis (grouped-query attention then needs no
copies of keys), and torch's scaled_dot_product_attention does the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]

# Rows whose query counts and lengths round up to the same powers of this factor share a call: at
# most this much padding, and few calls.
GROUP_FACTOR = 4


class Group(NamedTuple):
    """Rows that attend together, padded to the longest of them."""

    queries: Tensor  # [rows, queries_max] int64 into T; padding repeats the row's last query
    # [rows * keys] int64 each, where keys are; padding repeats the row's last key, since hiding a
    # key does not keep a NaN out that somebody else left there.
    pages: Tensor
    offsets: Tensor
    hidden: dict[int | None, Tensor]  # window -> [rows, 1, queries_max, keys] float, 0 or -inf
    is_padded: bool  # whether some entry of ``queries`` is padding


class Plan(NamedTuple):
    """How one step's rows attend: made once on the host, used in every layer."""

    groups: list[Group]

    def attend(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """Compute what ``reference.paged_attention`` computes."""
        return paged_attention(q, k_cache, v_cache, self, scale=scale, window=window)


def plan(
    page_table: Ints,
    starts: Ints,
    positions: Ints,
    page_tokens: int,
    *,
    windows: set[int | None],
    device: torch.device,
    dtype: torch.dtype,
) -> Plan:
    """Group the rows. Arguments as for the reference, in host memory; no row is empty."""
    counts = np.diff(starts)
    lengths = positions[starts[1:] - 1] + 1
    keys = np.stack([_ceil_log(counts), _ceil_log(lengths)])
    kinds, members = np.unique(keys, axis=1, return_inverse=True)
    groups = []
    for kind in range(kinds.shape[1]):
        rows = np.flatnonzero(members.reshape(-1) == kind)
        groups.append(
            _group(page_table, starts, positions, rows, page_tokens, windows, device, dtype)
        )
    return Plan(groups)


def paged_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: Plan, *, scale: float, window: int | None
) -> Tensor:
    """Compute what ``reference.paged_attention`` computes, for the rows of ``plan``."""
    out = torch.empty_like(q)
    _, heads, size = q.shape
    kv_heads = k_cache.shape[2]
    fold = heads // kv_heads
    for group in plan.groups:
        rows, queries = group.queries.shape
        flat = group.queries.view(-1)
        # [rows, kv_heads, queries * fold, d]: heads that share keys are more queries of one head.
        folded = q.index_select(0, flat).view(rows, queries, kv_heads, fold, size)
        folded = folded.transpose(1, 2).reshape(rows, kv_heads, queries * fold, size)
        places = group.pages, group.offsets
        keys = k_cache[places].to(q.dtype).view(rows, -1, kv_heads, size).transpose(1, 2)
        values = v_cache[places].to(q.dtype).view(rows, -1, kv_heads, size).transpose(1, 2)
        hidden = group.hidden[window]
        if queries > 1:
            hidden = hidden.repeat_interleave(fold, dim=2)
        seen = F.scaled_dot_product_attention(folded, keys, values, attn_mask=hidden, scale=scale)
        seen = seen.view(rows, kv_heads, queries, fold, size).transpose(1, 2)
        seen = seen.reshape(rows * queries, heads, size)
        out.index_copy_(0, flat, seen) if not group.is_padded else out.index_put_((flat,), seen)
    return out


def _ceil_log(values: Ints) -> Ints:
    logs: Ints = np.ceil(np.log(values) / np.log(GROUP_FACTOR) - 1e-9).astype(np.int64)
    return logs


def _group(
    page_table: Ints,
    starts: Ints,
    positions: Ints,
    rows: Ints,
    page_tokens: int,
    windows: set[int | None],
    device: torch.device,
    dtype: torch.dtype,
) -> Group:
    counts = starts[rows + 1] - starts[rows]
    offsets = np.arange(counts.max())
    # Past a row's end its last query is repeated: the same result is written again.
    queries = starts[rows, None] + np.minimum(offsets[None, :], counts[:, None] - 1)
    own = positions[queries]
    keys = np.arange((own.max() // page_tokens + 1) * page_tokens)
    distance = own[:, :, None] - keys[None, None, :]
    hidden = {}
    for window in windows:
        seen = distance >= 0
        if window is not None:
            seen &= distance < window
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(
            torch.from_numpy(~seen), float("-inf")
        )
        hidden[window] = mask[:, None].to(device)
    read = np.minimum(keys[None, :], own.max(axis=1, keepdims=True))
    pages = page_table[rows[:, None], read // page_tokens]
    return Group(
        torch.from_numpy(queries).to(device),
        torch.from_numpy(pages.reshape(-1)).to(device),
        torch.from_numpy((read % page_tokens).reshape(-1)).to(device),
        hidden,
        is_padded=bool((counts != counts.max()).any()),
    )
