"""The first half of a LoRA update, in Triton: ``v = x A^T`` for each unit of a plan.

K is cut into splits, whose number depends on K alone. Each is summed by itself, then all of them
from the first to the last: by the program that arrives last, or by one program that computes them
one after another. Both give the same bits, so the number of rows may decide which it is.
"""

from __future__ import annotations

import triton
import triton.language as tl

from weft.kernels.sgmv.constants import (
    BLOCKS,
    G_COLUMNS,
    G_RANKS,
    HEADER_INTS,
    ITEMS,
    ITEMS_AT,
    PARTS,
    ROW,
    ROW_COUNT,
    SLOT,
    UNIT_INTS,
    V_ROW,
)


@triton.jit(do_not_specialize=["place"])
def shrink_kernel(
    v_ptr, partials_ptr, arrivals_ptr, x_ptr, arena_ptr, plan_ptr,
    pages_ptr, groups_ptr, a_start_ptr,
    place,  # of this layer's site in the tables of a slot
    places, pages_max, page_stride, x_stride, v_stride, partials_stride,
    SITE: tl.constexpr, FEATURES: tl.constexpr,
    SPLITS: tl.constexpr, SPLIT_TILES: tl.constexpr, SPLIT_PROGRAMS: tl.constexpr,
    PAGE_GRANULES: tl.constexpr, ROWS: tl.constexpr, RANKS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Write v [rows of v, ranks]: of each unit the ranks of its adapter at this site.

    A program takes one item, and of its K one split (``SPLIT_PROGRAMS`` is ``SPLITS``) or all of
    them (it is 1); then the item that lies as many programs further on.
    """
    tl.static_assert(SPLIT_PROGRAMS == 1 or SPLIT_PROGRAMS == SPLITS)
    # Of one tile a compiler could turn a sum of splits into one longer dot, which rounds otherwise.
    tl.static_assert(SPLITS == 1 or SPLIT_TILES > 1)
    items_ptr = plan_ptr + tl.load(plan_ptr + ITEMS_AT + 2 * SITE)
    work_count = tl.load(plan_ptr + ITEMS + 2 * SITE) * SPLIT_PROGRAMS
    work = tl.program_id(0)
    while work < work_count:
        item = work // SPLIT_PROGRAMS
        split = work % SPLIT_PROGRAMS
        packed = tl.load(items_ptr + item)
        unit_ptr = plan_ptr + HEADER_INTS + packed // BLOCKS * UNIT_INTS
        row = tl.load(unit_ptr + ROW)
        rows = tl.load(unit_ptr + ROW_COUNT)
        slot = tl.load(unit_ptr + SLOT)
        v_row = tl.load(unit_ptr + V_ROW)
        entry = slot * places + place
        groups = tl.load(groups_ptr + entry * PARTS)
        groups += tl.load(groups_ptr + entry * PARTS + 1)
        groups += tl.load(groups_ptr + entry * PARTS + 2)
        a_start = tl.load(a_start_ptr + entry)

        first_rank = packed % BLOCKS * RANKS
        rank = first_rank + tl.arange(0, RANKS)
        group = rank // G_RANKS
        m = tl.arange(0, ROWS)
        k = tl.arange(0, G_COLUMNS)
        m_ok = m < rows
        rank_ok = group < groups
        slot_pages = pages_ptr + slot * pages_max
        x_rows = x_ptr + (row + m).to(tl.int64)[:, None] * x_stride  # [M, 1]
        in_granule = (rank % G_RANKS)[None, :] * G_COLUMNS + k[:, None]  # [K, R]

        # An adapter may have fewer ranks in this layer than the plan foresees.
        if first_rank < groups * G_RANKS:
            total = tl.zeros((ROWS, RANKS), dtype=tl.float32)
            sums = tl.zeros((ROWS, RANKS), dtype=tl.float32)
            first = split * SPLIT_TILES
            for i in range(SPLITS // SPLIT_PROGRAMS * SPLIT_TILES):
                tile = first + i
                column = tile * G_COLUMNS + k
                x_ok = m_ok[:, None] & (column < FEATURES)[None, :]
                x = tl.load(x_rows + column[None, :], mask=x_ok, other=0.0)  # [M, K]
                # The last split may reach past K. (A block & a scalar is no mask: so a `where`.)
                a_ok = group < tl.where(tile * G_COLUMNS < FEATURES, groups, 0)
                granule = a_start + tile * groups + group
                page = tl.load(slot_pages + granule // PAGE_GRANULES, mask=a_ok, other=0)
                a_ptrs = page.to(tl.int64) * page_stride
                a_ptrs += granule % PAGE_GRANULES * (G_RANKS * G_COLUMNS)
                a_ptrs = arena_ptr + a_ptrs[None, :] + in_granule
                a = tl.load(a_ptrs, mask=a_ok[None, :], other=0.0)  # [K, R]
                sums = tl.dot(x.to(DOT), a.to(DOT), sums, input_precision="ieee")
                if SPLITS > SPLIT_PROGRAMS:
                    is_last = (i + 1) % SPLIT_TILES == 0
                    total += tl.where(is_last, sums, 0.0)
                    sums = tl.where(is_last, 0.0, sums)

            v_rows = (v_row + m).to(tl.int64)
            v_at = v_rows[:, None] * v_stride + rank[None, :]  # [M, R]
            v_ok = m_ok[:, None] & rank_ok[None, :]
            if SPLIT_PROGRAMS == 1:
                v = total if SPLITS > 1 else sums
                tl.store(v_ptr + v_at, v.to(v_ptr.dtype.element_ty), mask=v_ok)
            else:
                # Past the first-level cache both ways: other processors write and read these.
                partials = partials_ptr + v_at
                tl.store(
                    partials + split * partials_stride.to(tl.int64), sums, mask=v_ok,
                    cache_modifier=".cg",
                )  # fmt: skip
                tl.debug_barrier()
                arrived = tl.atomic_add(arrivals_ptr + item, 1, sem="acq_rel", scope="gpu")
                if arrived == SPLITS - 1:
                    for s in tl.range(SPLITS, loop_unroll_factor=4):
                        at = partials + s * partials_stride.to(tl.int64)
                        total += tl.load(at, mask=v_ok, other=0.0, cache_modifier=".cg")
                    tl.store(v_ptr + v_at, total.to(v_ptr.dtype.element_ty), mask=v_ok)
                    # For the next launch, which begins after this one has ended.
                    tl.store(arrivals_ptr + item, 0)
        work += tl.num_programs(0)
