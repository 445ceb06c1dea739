"""The second half of a LoRA update, in Triton: ``y += weight * scale * v B^T``, in place.

What has an affine becomes ``factor * y + weight * offset`` then. A row's adapters take their turns
in float32, in the row's own order, before y is rounded once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from weft.kernels.sgmv.constants import (
    AFFINE_BLOCKS,
    AFFINE_FLOATS,
    CHUNKS,
    G_COLUMNS,
    G_RANKS,
    HEADER_INTS,
    NEXT,
    PARTS,
    ROW,
    ROW_COUNT,
    SLOT,
    UNIT_INTS,
    V_ROW,
    WEIGHT,
)


@triton.jit
def _choose(part, first, second, third):
    return tl.where(part == 0, first, tl.where(part == 1, second, third))


@triton.jit
def _adapter(
    unit_ptr, groups_ptr, b_start_ptr, affine_start_ptr, scales_ptr, place, places, part
):  # fmt: skip
    """Return of a unit's adapter at one part: slot, groups, rank in v, starts, factor, weight."""
    slot = tl.load(unit_ptr + SLOT)
    weight = tl.load(unit_ptr + WEIGHT).to(tl.float32, bitcast=True)
    entry = (slot * places + place) * PARTS
    groups_0 = tl.load(groups_ptr + entry)
    groups_1 = tl.load(groups_ptr + entry + 1)
    groups_2 = tl.load(groups_ptr + entry + 2)
    groups = _choose(part, groups_0, groups_1, groups_2)
    v_rank = _choose(part, 0, groups_0, groups_0 + groups_1) * G_RANKS
    b_start = tl.load(b_start_ptr + entry + part)
    affine_start = tl.load(affine_start_ptr + entry + part)
    factor = weight * tl.load(scales_ptr + entry + part)
    return slot, groups, v_rank, b_start, affine_start, factor, weight


@triton.jit
def _v_tile(v_ptr, v_row, v_rank, v_stride, m_ok, rank, rank_ok, ROWS: tl.constexpr):
    """Load [M, R] of v."""
    rows = (v_row + tl.arange(0, ROWS)).to(tl.int64)
    at = rows[:, None] * v_stride + (v_rank + rank)[None, :]
    return tl.load(v_ptr + at, mask=m_ok[:, None] & rank_ok[None, :], other=0.0)


@triton.jit
def _b_tile(arena_ptr, slot_pages, granule, rank, ok, page_stride, PAGE_GRANULES: tl.constexpr):
    """Load [R, 128] of B^T: of each rank its row of a granule."""
    page = tl.load(slot_pages + granule // PAGE_GRANULES, mask=ok, other=0)
    at = page.to(tl.int64) * page_stride
    at += granule % PAGE_GRANULES * (G_RANKS * G_COLUMNS) + rank % G_RANKS * G_COLUMNS
    n = tl.arange(0, G_COLUMNS)
    return tl.load(arena_ptr + at[:, None] + n[None, :], mask=ok[:, None], other=0.0)


@triton.jit
def _affine(
    arena_ptr, slot_pages, start, tile, n_ok, page_stride, PAGE_GRANULES: tl.constexpr
):  # fmt: skip
    """Load [N] factors and offsets of a tile; 1 and 0 where ``n_ok`` is not."""
    granule = start + tile // AFFINE_BLOCKS
    page = tl.load(slot_pages + granule // PAGE_GRANULES).to(tl.int64)
    at = page * page_stride + granule % PAGE_GRANULES * (G_RANKS * G_COLUMNS)
    floats = (arena_ptr + at).to(tl.pointer_type(tl.float32), bitcast=True)
    column = tile % AFFINE_BLOCKS * AFFINE_FLOATS + tl.arange(0, G_COLUMNS)
    factor = tl.load(floats + column, mask=n_ok, other=1.0)
    return factor, tl.load(floats + G_COLUMNS + column, mask=n_ok, other=0.0)


@triton.jit
def _through_adapters(
    y, chunk, tile, part, m_ok, n_ok,
    v_ptr, arena_ptr, units_ptr, pages_ptr, groups_ptr, b_start_ptr, affine_start_ptr, scales_ptr,
    place, places, pages_max, page_stride, v_stride,
    PAGE_GRANULES: tl.constexpr, ROWS: tl.constexpr, RANKS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Return what all adapters of a chunk make of a tile of y, and the most groups of any of them.

    One adapter alone makes of it what the simple form does, to the bit.
    """
    product = tl.zeros((ROWS, G_COLUMNS), dtype=tl.float32)
    groups_most = 0
    first_rank = 0
    unit = chunk
    # One loop over the blocks of ranks of all adapters: nested ones cost more registers.
    while unit >= 0:
        unit_ptr = units_ptr + unit * UNIT_INTS
        slot, groups, v_rank, b_start, affine_start, factor, weight = _adapter(
            unit_ptr, groups_ptr, b_start_ptr, affine_start_ptr, scales_ptr, place, places, part
        )
        rank = first_rank + tl.arange(0, RANKS)
        ok = rank // G_RANKS < groups
        v = _v_tile(v_ptr, tl.load(unit_ptr + V_ROW), v_rank, v_stride, m_ok, rank, ok, ROWS)
        granule = b_start + tile * groups + rank // G_RANKS
        slot_pages = pages_ptr + slot * pages_max
        b = _b_tile(arena_ptr, slot_pages, granule, rank, ok, page_stride, PAGE_GRANULES)
        product = tl.dot(v.to(DOT), b.to(DOT), product, input_precision="ieee")
        groups_most = tl.maximum(groups_most, groups)
        first_rank += RANKS
        is_last = first_rank >= groups * G_RANKS
        if is_last:
            y = tl.fma(product, factor, y)
            if affine_start > 0:
                scaling, offset = _affine(
                    arena_ptr, slot_pages, affine_start, tile, n_ok, page_stride, PAGE_GRANULES
                )
                y = tl.fma(y, scaling[None, :], (weight * offset)[None, :])
        product = tl.where(is_last, 0.0, product)
        first_rank = tl.where(is_last, 0, first_rank)
        unit = tl.where(is_last, tl.load(unit_ptr + NEXT), unit)
    return y, groups_most


@triton.jit(do_not_specialize=["place"])
def expand_kernel(
    y_ptr, v_ptr, arena_ptr, plan_ptr,
    pages_ptr, groups_ptr, b_start_ptr, affine_start_ptr, scales_ptr,
    place,  # of this layer's site in the tables of a slot
    places, pages_max, page_stride, y_stride, v_stride,
    WIDTH_0: tl.constexpr, WIDTH_1: tl.constexpr, WIDTH_2: tl.constexpr,
    TILES: tl.constexpr, PAGE_GRANULES: tl.constexpr,
    ROWS: tl.constexpr, RANKS: tl.constexpr, DOT: tl.constexpr, IS_SIMPLE: tl.constexpr,
):  # fmt: skip
    """Add to y [T, WIDTH_0 + WIDTH_1 + WIDTH_2], the columns of a site's parts.

    A program takes ``TILES`` tiles of 128 columns of one part for one chunk of rows; then the work
    that lies as many programs further on. ``IS_SIMPLE`` promises that a row has one adapter and a
    part at most ``RANKS`` ranks: the loads of the next tile then overlap the sums of this one.
    """
    tl.static_assert(IS_SIMPLE or TILES == 1)
    WORK_COLUMNS: tl.constexpr = TILES * G_COLUMNS
    WORKS_0: tl.constexpr = (WIDTH_0 + WORK_COLUMNS - 1) // WORK_COLUMNS
    WORKS_1: tl.constexpr = (WIDTH_1 + WORK_COLUMNS - 1) // WORK_COLUMNS
    WORKS_2: tl.constexpr = (WIDTH_2 + WORK_COLUMNS - 1) // WORK_COLUMNS
    WORKS: tl.constexpr = WORKS_0 + WORKS_1 + WORKS_2

    m = tl.arange(0, ROWS)
    n = tl.arange(0, G_COLUMNS)
    r = tl.arange(0, RANKS)
    work_count = tl.load(plan_ptr + CHUNKS) * WORKS
    work = tl.program_id(0)
    while work < work_count:
        chunk = work // WORKS
        part_work = work % WORKS
        part = (part_work >= WORKS_0).to(tl.int32) + (part_work >= WORKS_0 + WORKS_1).to(tl.int32)
        first_tile = (part_work - _choose(part, 0, WORKS_0, WORKS_0 + WORKS_1)) * TILES
        width = _choose(part, WIDTH_0, WIDTH_1, WIDTH_2)
        y_column = _choose(part, 0, WIDTH_0, WIDTH_0 + WIDTH_1)

        units_ptr = plan_ptr + HEADER_INTS
        unit_ptr = units_ptr + chunk * UNIT_INTS
        m_ok = m < tl.load(unit_ptr + ROW_COUNT)
        y_row = (tl.load(unit_ptr + ROW) + m).to(tl.int64)
        y_rows = y_ptr + y_row[:, None] * y_stride + y_column  # [M, 1]
        # Where no adapter has this part, y is not touched: not even -0 becomes 0.
        if IS_SIMPLE:
            slot, groups, v_rank, b_start, affine_start, factor, weight = _adapter(
                unit_ptr, groups_ptr, b_start_ptr, affine_start_ptr, scales_ptr, place, places, part
            )
            slot_pages = pages_ptr + slot * pages_max
            v_ok = r // G_RANKS < groups
            v = _v_tile(v_ptr, tl.load(unit_ptr + V_ROW), v_rank, v_stride, m_ok, r, v_ok, ROWS)
            if groups > 0:
                for j in range(TILES):
                    tile = first_tile + j
                    column = tile * G_COLUMNS + n
                    y_ptrs = y_rows + column[None, :]  # [M, N]
                    y_ok = m_ok[:, None] & (column < width)[None, :]
                    # Asked for first: it arrives while the weights do.
                    y = tl.load(y_ptrs, mask=y_ok, other=0.0)
                    ok = r // G_RANKS < tl.where(tile * G_COLUMNS < width, groups, 0)
                    granule = b_start + tile * groups + r // G_RANKS
                    b = _b_tile(arena_ptr, slot_pages, granule, r, ok, page_stride, PAGE_GRANULES)
                    product = tl.dot(v.to(DOT), b.to(DOT), input_precision="ieee")
                    y = tl.fma(product, factor, y.to(tl.float32))
                    if (affine_start > 0) & (tile * G_COLUMNS < width):
                        scaling, offset = _affine(
                            arena_ptr, slot_pages, affine_start, tile, column < width, page_stride,
                            PAGE_GRANULES,
                        )  # fmt: skip
                        y = tl.fma(y, scaling[None, :], (weight * offset)[None, :])
                    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=y_ok)
        else:
            column = first_tile * G_COLUMNS + n
            n_ok = column < width
            y_ptrs = y_rows + column[None, :]  # [M, N]
            y = tl.load(y_ptrs, mask=m_ok[:, None] & n_ok[None, :], other=0.0).to(tl.float32)
            y, groups = _through_adapters(
                y, chunk, first_tile, part, m_ok, n_ok,
                v_ptr, arena_ptr, units_ptr, pages_ptr, groups_ptr, b_start_ptr, affine_start_ptr,
                scales_ptr,
                place, places, pages_max, page_stride, v_stride,
                PAGE_GRANULES, ROWS, RANKS, DOT,
            )  # fmt: skip
            y_ok = m_ok[:, None] & (column < tl.where(groups > 0, width, 0))[None, :]
            tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=y_ok)
        work += tl.num_programs(0)
