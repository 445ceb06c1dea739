"""The layouts of plans and granules, as Triton's kernels name them."""

from __future__ import annotations

import triton.language as tl

from weft.kernels.sgmv import granules, plan

HEADER_INTS = tl.constexpr(plan.HEADER_INTS)
CHUNKS = tl.constexpr(plan.CHUNKS)
ITEMS_AT = tl.constexpr(plan.ITEMS_AT)
ITEMS = tl.constexpr(plan.ITEMS)
UNIT_INTS = tl.constexpr(plan.UNIT_INTS)
ROW = tl.constexpr(plan.ROW)
ROW_COUNT = tl.constexpr(plan.ROW_COUNT)
SLOT = tl.constexpr(plan.SLOT)
V_ROW = tl.constexpr(plan.V_ROW)
WEIGHT = tl.constexpr(plan.WEIGHT)
NEXT = tl.constexpr(plan.NEXT)
BLOCKS = tl.constexpr(plan.BLOCKS)

PARTS = tl.constexpr(granules.PARTS_MAX)
G_RANKS = tl.constexpr(granules.RANKS)
G_COLUMNS = tl.constexpr(granules.COLUMNS)
AFFINE_BLOCKS = tl.constexpr(granules.AFFINE_BLOCKS)
AFFINE_FLOATS = tl.constexpr(granules.AFFINE_FLOATS)
