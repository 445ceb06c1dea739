"""The LoRA update of a mixed batch on a GPU: weights in the arena's pages, Triton's kernels.

What is chosen here for speed was chosen by calculation and by what the compilers report (registers,
spills, widths of loads), not by measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft.kernels.sgmv.device_tables import DeviceTables
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
# By rows: so that a program's registers hold its tiles.
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
    """What steps may hold.

    In a plain step a row has one adapter. In others it may have several, and there may be more
    segments, for rows that differ in their weights alone are in different ones.
    """

    tokens: int
    segments: int  # of a plain step
    rank: int  # of a module
    row_adapters: int = 1
    segments_of_sums: int = 0  # of any other step; 0: there is none


class Plan(NamedTuple):
    """One step's work in device memory.

    ``counts`` says how large a grid is worth launching: for a graph, that of ``planner.bounds``.
    The forms of the kernels depend on the planner alone, so that a launch of an empty plan compiles
    what all its steps need. A row's result is the same bits in all forms.
    """

    ints: Tensor  # int32, as ``Planner.lay_out`` writes it
    counts: Counts
    planner: Planner


class PagedLora:
    """The adapters whose weights lie in the pages of one arena.

    ``v = x A^T`` is kept in the type of x and the weights, as PEFT rounds it; sums are float32. All
    sites use the same scratch memory: launch on one stream, or in an order that events establish.
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
        assert tables.groups.shape[1:3] == (len(arena), len(widths))
        self._arena = arena
        self._tables = DeviceTables(tables, arena.device)
        self._widths = [tuple(site) for site in widths]
        self._limits = limits
        self._programs = PROGRAMS * processors
        v_dtype = torch.promote_types(compute_dtype, arena.dtype)
        self._forms = _forms(self._widths, limits, v_dtype)
        # Shorter chunks make more items of fewer tokens.
        sizes = {limits.tokens, min(limits.tokens, TOKENS_FEW)}
        kinds = {False, limits.segments_of_sums > 0}
        bounds = [self.planner(size, has_sums=has).bounds for size in sizes for has in kinds]
        v_rows = max(each.rows for each in bounds)
        items = max(chain.from_iterable(each.items for each in bounds))
        self._scratch = _Scratch(
            torch.empty(v_rows * max(self._forms.v_strides), dtype=v_dtype, device=arena.device),
            torch.empty(PARTIALS_BYTES // 4, dtype=torch.float32, device=arena.device),
            torch.zeros(items, dtype=torch.int32, device=arena.device),
        )

    def planner(self, tokens: int, *, has_sums: bool = False) -> Planner:
        """Return what makes plans of steps of so many tokens at most, plain ones or not.

        A step runs best with the planner of fewest tokens that it fits.
        """
        many = CHUNK_ROWS_MANY[self._forms.itemsize]
        limits = self._limits
        segments = limits.segments_of_sums if has_sums else limits.segments
        return Planner(
            tokens_max=tokens,
            segments_max=min(tokens, segments),
            chunk_rows=CHUNK_ROWS_FEW if tokens <= TOKENS_FEW else many,
            block_ranks=self._forms.shrink_ranks,
            ranks_max=self._forms.ranks_max,
            row_adapters_max=limits.row_adapters if has_sums else 1,
        )

    @property
    def groups(self) -> Ints:
        """What ``Planner.lay_out`` must know of slots: [slots, sites]."""
        return self._tables.groups_most

    def update(self, slot: int) -> None:
        """Take over what has changed in the tables. No step may run that reads the slot."""
        self.stage(slot)()

    def stage(self, slot: int) -> Callable[[], None]:
        """Take it over for plans; return what brings it to the device, as it is now."""
        return self._tables.stage(slot)

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
        tables, scratch, forms = self._tables, self._scratch, self._forms
        planner = plan.planner
        splits, split_tiles = splits_of(x.shape[1])
        v_stride = forms.v_strides[site]
        partials_stride = planner.bounds.rows * v_stride
        has_room = splits * partials_stride <= scratch.partials.numel()
        is_parallel = has_room and planner.bounds.items[site] < self._programs
        split_programs = splits if is_parallel else 1
        shrink_kernel[(min(items * split_programs, self._programs),)](
            scratch.v, scratch.partials, scratch.arrivals, x, self._arena[layer], plan.ints,
            tables.pages, tables.groups, tables.a_start,
            layer * len(self._widths) + site,
            tables.places, tables.pages.shape[1], self._arena.stride(1), x.stride(0), v_stride,
            partials_stride,
            SITE=site, FEATURES=x.shape[1],
            SPLITS=splits, SPLIT_TILES=split_tiles, SPLIT_PROGRAMS=split_programs,
            PAGE_GRANULES=self._arena.shape[2], ROWS=planner.chunk_rows,
            RANKS=forms.shrink_ranks[site], DOT=forms.dot,
            num_warps=WARPS[planner.chunk_rows], num_stages=STAGES[forms.itemsize],
            enable_fp_fusion=True,
        )  # fmt: skip

    def expand(self, y: Tensor, layer: int, site: int, plan: Plan) -> None:
        """Add to y what ``shrink`` has computed, for the same plan and site, just before."""
        widths = self._widths[site]
        assert y.stride(1) == 1
        assert y.shape[1] == sum(widths)
        if plan.counts.items[site] == 0:
            return
        tables, forms, planner = self._tables, self._forms, plan.planner
        # Several tiles pay while there is work for all programs.
        most = planner.bounds.chunks * _works(widths, EXPAND_TILES_MANY)
        is_simple = forms.is_short and planner.row_adapters_max == 1
        is_many = is_simple and most >= self._programs
        tiles = EXPAND_TILES_MANY if is_many else EXPAND_TILES_FEW
        first, second, third = (*widths, 0, 0)[:PARTS_MAX]
        expand_kernel[(min(plan.counts.chunks * _works(widths, tiles), self._programs),)](
            y, self._scratch.v, self._arena[layer], plan.ints,
            tables.pages, tables.groups, tables.b_start, tables.affine_start, tables.scales,
            layer * len(self._widths) + site,
            tables.places, tables.pages.shape[1], self._arena.stride(1), y.stride(0),
            forms.v_strides[site],
            WIDTH_0=first, WIDTH_1=second, WIDTH_2=third,
            TILES=tiles, PAGE_GRANULES=self._arena.shape[2], ROWS=planner.chunk_rows,
            RANKS=forms.expand_ranks, DOT=forms.dot, IS_SIMPLE=is_simple,
            num_warps=WARPS[planner.chunk_rows], num_stages=STAGES[forms.itemsize],
            enable_fp_fusion=True,
        )  # fmt: skip


def splits_of(features: int) -> tuple[int, int]:
    """Return into how many splits K is cut, and how many 128-column tiles one has."""
    tiles = -(-features // COLUMNS)
    split_tiles = -(-tiles // -(-tiles // SPLIT_TILES))
    return -(-tiles // split_tiles), split_tiles


class _Scratch(NamedTuple):
    v: Tensor  # [rows of v, v_stride] of a site, at the front
    partials: Tensor  # float32 [splits, rows of v, v_stride] of a site, at the front
    arrivals: Tensor  # int32 [items], splits that have arrived; zero between launches


class _Forms(NamedTuple):
    """What is compiled into the kernels for one configuration."""

    itemsize: int  # of v
    dot: tl.dtype  # in which tiles are multiplied
    ranks_max: list[int]  # of each site
    v_strides: list[int]  # of each site
    shrink_ranks: list[int]  # of an item, of each site
    expand_ranks: int  # of a tile
    is_short: bool  # all ranks of a part are one tile


def _forms(widths: Sequence[Sequence[int]], limits: Limits, v_dtype: torch.dtype) -> _Forms:
    def block_ranks(ranks: int) -> int:
        power: int = triton.next_power_of_2(ranks)
        return min(max(power, BLOCK_RANKS_MIN), BLOCK_RANKS_MAX[v_dtype.itemsize])

    rank = -(-limits.rank // RANKS) * RANKS
    ranks_max = [rank * len(site) for site in widths]
    # In the interpreter arithmetic on bfloat16 is arithmetic on its bits.
    is_interpreted = triton.knobs.runtime.interpret
    return _Forms(
        itemsize=v_dtype.itemsize,
        dot=tl.float32 if is_interpreted else _TRITON_TYPES[v_dtype],
        ranks_max=ranks_max,
        # Multiples of 16 elements in any step: Triton compiles multiples of 16 by themselves.
        v_strides=[-(-ranks // 16) * 16 for ranks in ranks_max],
        shrink_ranks=[block_ranks(ranks) for ranks in ranks_max],
        expand_ranks=block_ranks(rank),
        is_short=rank <= block_ranks(rank),
    )


def _works(widths: Sequence[int], tiles: int) -> int:
    return sum(-(-width // (tiles * COLUMNS)) for width in widths)
