"""The LoRA update of a mixed batch on a GPU: weights in the arena's pages, Triton's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft.kernels.sgmv.expand import expand_kernel
from weft.kernels.sgmv.granules import COLUMNS, PARTS_MAX, RANKS, Tables
from weft.kernels.sgmv.plan import Counts, Ints, Planner
from weft.kernels.sgmv.shrink import shrink_kernel

# 1,024 columns of x and of 8 ranks of A, 16 KiB each for 8 rows: long enough to be read in one go,
# short enough that a single row gives several processors work at the sites of usual models.
SPLIT_TILES = 8
# Of an item, by bytes of an element: float32 is multiplied out of registers.
BLOCK_RANKS_MIN = 16
BLOCK_RANKS_MAX = {2: 64, 4: 32}
# Few rows give more programs work, many read weights less often. From 64 rows on other instructions
# multiply on Hopper (wgmma), which may sum in another order.
CHUNK_ROWS_FEW = 16
CHUNK_ROWS_MANY = {2: 32, 4: 16}
TOKENS_FEW = 256
# By rows: so that a program's registers hold it without spilling.
WARPS = {16: 4, 32: 8}
# Room for sums of splits that programs pass on; for what needs more, a program computes all splits.
PARTIALS_BYTES = 32 * 2**20
# Programs that one multiprocessor runs at once, by registers and shared memory.
PROGRAMS = 6
# 128-column tiles of a program of expand: the more, the more loads overlap sums.
EXPAND_TILES_FEW, EXPAND_TILES_MANY = 1, 4
# How far ahead weights are loaded, of which the look-up of their page is a part; by bytes of an
# element. Programs share 227 KiB (Hopper) or 163 KiB (A100) of memory for it.
STAGES = {2: 5, 4: 3}

_TRITON_TYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


class Limits(NamedTuple):
    """What steps may hold. The forms of the kernels depend on it, and on nothing in a step."""

    tokens: int
    segments: int
    rank: int  # of a module
    row_adapters: int = 1


class Plan(NamedTuple):
    """One step's work in device memory.

    ``counts`` says how large a grid is worth launching: for a graph, that of ``planner.bounds``.
    The forms of the kernels depend on the planner alone, so that a launch of an empty plan compiles
    what all its steps need.
    """

    ints: Tensor  # int32, as ``Planner.lay_out`` writes it
    counts: Counts
    planner: Planner


class PagedLora:
    """The adapters whose weights lie in the pages of one arena.

    Sites use the same scratch memory one after another: launch on one stream, or in an order that
    events establish.
    """

    def __init__(
        self,
        arena: Tensor,
        tables: Tables,
        widths: Sequence[Sequence[int]],
        limits: Limits,
        *,
        compute_dtype: torch.dtype,
        processors: int,
    ) -> None:
        """
        Args:
            arena: as ``granules.typed`` returns it: [layers, pages, page_granules, 8, 128].
            tables: of all slots; ``update`` says which has changed.
            widths: by site, columns of each part.
            limits: of all steps.
            compute_dtype: of x and y.
            processors: multiprocessors of the device.
        """
        assert arena.is_contiguous()
        self._arena = arena
        self._tables = tables
        self._widths = [tuple(site) for site in widths]
        self._limits = limits
        self._processors = processors
        layers, sites = tables.groups.shape[1:3]
        assert arena.shape[0] == layers
        assert len(widths) == sites
        self._place_count = layers * sites
        device = arena.device
        self._pages = torch.from_numpy(tables.pages).to(device, copy=True)
        self._groups = torch.from_numpy(tables.groups).to(device, copy=True)
        self._a_start = torch.from_numpy(tables.a_start).to(device, copy=True)
        self._b_start = torch.from_numpy(tables.b_start).to(device, copy=True)
        self._scales = torch.from_numpy(tables.scales).to(device, copy=True)
        self._groups_most: Ints = tables.groups.sum(axis=-1).max(axis=1)  # [slots, sites]

        rank = -(-limits.rank // RANKS) * RANKS
        self._ranks_max = [rank * len(site) for site in self._widths]
        # Of v. A multiple of 16 elements in any step: Triton compiles multiples by themselves.
        self._v_strides = [-(-ranks // 16) * 16 for ranks in self._ranks_max]
        v_dtype = torch.promote_types(compute_dtype, arena.dtype)
        self._itemsize = v_dtype.itemsize
        self._shrink_ranks = [self._block_ranks(ranks) for ranks in self._ranks_max]
        self._expand_ranks = self._block_ranks(rank)
        self._is_simple = limits.row_adapters == 1 and rank <= self._expand_ranks
        # In the interpreter arithmetic on bfloat16 is arithmetic on its bits.
        is_interpreted = triton.knobs.runtime.interpret
        self._dot = tl.float32 if is_interpreted else _TRITON_TYPES[v_dtype]
        bounds = self.planner(limits.tokens).bounds
        self._v = torch.empty(bounds.rows * max(self._v_strides), dtype=v_dtype, device=device)
        self._partials = torch.empty(PARTIALS_BYTES // 4, dtype=torch.float32, device=device)
        # Of splits that have arrived, by item; zero between launches.
        self._arrivals = torch.zeros(max(bounds.items), dtype=torch.int32, device=device)

    def planner(self, tokens: int) -> Planner:
        """Return what makes plans of steps of so many tokens at most.

        A step runs best with the planner of fewest tokens that it fits.
        """
        is_few = tokens <= TOKENS_FEW
        return Planner(
            tokens_max=tokens,
            segments_max=min(tokens, self._limits.segments),
            chunk_rows=CHUNK_ROWS_FEW if is_few else CHUNK_ROWS_MANY[self._itemsize],
            block_ranks=self._shrink_ranks,
            ranks_max=self._ranks_max,
            row_adapters_max=self._limits.row_adapters,
        )

    @property
    def groups(self) -> Ints:
        """What ``Planner.lay_out`` must know of slots: [slots, sites]."""
        return self._groups_most

    def update(self, slot: int) -> None:
        """Take over what has changed in the tables. No step may run that reads the slot."""
        tables = self._tables
        self._groups_most[slot] = tables.groups[slot].sum(axis=-1).max(axis=0)
        self._pages[slot] = torch.from_numpy(tables.pages[slot])
        self._groups[slot] = torch.from_numpy(tables.groups[slot])
        self._a_start[slot] = torch.from_numpy(tables.a_start[slot])
        self._b_start[slot] = torch.from_numpy(tables.b_start[slot])
        self._scales[slot] = torch.from_numpy(tables.scales[slot])

    def add(self, y: Tensor, x: Tensor, layer: int, site: int, plan: Plan) -> None:
        """Add the updates of a planned batch: y [T, out of the site], x [T, in]."""
        self.shrink(x, layer, site, plan)
        self.expand(y, layer, site, plan)

    def shrink(self, x: Tensor, layer: int, site: int, plan: Plan) -> None:
        """Compute what ``expand`` adds afterwards; may run beside what computes y."""
        assert x.stride(1) == 1
        items = plan.counts.items[site]
        if items == 0:
            return
        splits, split_tiles = splits_of(x.shape[1])
        bounds = plan.planner.bounds
        v_stride = self._v_strides[site]
        partials_stride = bounds.rows * v_stride
        limit = PROGRAMS * self._processors
        is_parallel = (
            bounds.items[site] < limit and splits * partials_stride <= self._partials.numel()
        )
        split_programs = splits if is_parallel else 1
        grid = min(items * split_programs, limit)
        shrink_kernel[(grid,)](
            self._v, self._partials, self._arrivals, x, self._arena[layer], plan.ints,
            self._pages, self._groups, self._a_start,
            layer * len(self._widths) + site,
            self._place_count, self._pages.shape[1], self._arena.stride(1), x.stride(0), v_stride,
            partials_stride,
            SITE=site, FEATURES=x.shape[1],
            SPLITS=splits, SPLIT_TILES=split_tiles, SPLIT_PROGRAMS=split_programs,
            PAGE_GRANULES=self._arena.shape[2], ROWS=plan.planner.chunk_rows,
            RANKS=self._shrink_ranks[site], DOT=self._dot,
            num_warps=WARPS[plan.planner.chunk_rows], num_stages=STAGES[self._itemsize],
            enable_fp_fusion=True,
        )  # fmt: skip

    def expand(self, y: Tensor, layer: int, site: int, plan: Plan) -> None:
        """Add to y what ``shrink`` has computed, for the same plan and site, just before."""
        assert y.stride(1) == 1
        if plan.counts.items[site] == 0:
            return
        widths = self._widths[site]
        assert y.shape[1] == sum(widths)
        limit = PROGRAMS * self._processors
        # Several tiles pay where the look-ups before the first of them are shared, and enough work
        # is left for all programs.
        most = plan.planner.bounds.chunks * _works(widths, EXPAND_TILES_MANY)
        is_many = self._is_simple and most >= limit
        tiles = EXPAND_TILES_MANY if is_many else EXPAND_TILES_FEW
        grid = min(plan.counts.chunks * _works(widths, tiles), limit)
        first, second, third = (*widths, 0, 0)[:PARTS_MAX]
        expand_kernel[(grid,)](
            y, self._v, self._arena[layer], plan.ints,
            self._pages, self._groups, self._b_start, self._scales,
            layer * len(self._widths) + site,
            self._place_count, self._pages.shape[1], self._arena.stride(1), y.stride(0),
            self._v_strides[site],
            WIDTH_0=first, WIDTH_1=second, WIDTH_2=third,
            TILES=tiles, PAGE_GRANULES=self._arena.shape[2], ROWS=plan.planner.chunk_rows,
            RANKS=self._expand_ranks, DOT=self._dot, IS_SIMPLE=self._is_simple,
            num_warps=WARPS[plan.planner.chunk_rows], num_stages=STAGES[self._itemsize],
            enable_fp_fusion=True,
        )  # fmt: skip

    def _block_ranks(self, ranks: int) -> int:
        power: int = triton.next_power_of_2(ranks)
        return min(max(power, BLOCK_RANKS_MIN), BLOCK_RANKS_MAX[self._itemsize])


def splits_of(features: int) -> tuple[int, int]:
    """Return into how many splits K is cut, and how many 128-column tiles one has."""
    tiles = -(-features // COLUMNS)
    split_tiles = -(-tiles // -(-tiles // SPLIT_TILES))
    return -(-tiles // split_tiles), split_tiles


def _works(widths: Sequence[int], tiles: int) -> int:
    return sum(-(-width // (tiles * COLUMNS)) for width in widths)
