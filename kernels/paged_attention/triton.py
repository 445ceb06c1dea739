"""paged_attention in Triton: prefill, chunks after prefixes and decode in one call.

A query's result is the same bits whichever queries and rows are computed with it, and however the
step was cut (schedule.py): its keys are read in tiles and splits at fixed positions, within a split
by online softmax (Milakov and Gimelshein 2018), and splits are merged in the order of positions
(Dao et al. 2023, "Flash-Decoding") by the same operations in registers or from memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from weft.kernels.paged_attention.schedule import (
    ITEM_FIELDS,
    MERGE_FIELDS,
    SPLIT_TOKENS,
    Cut,
    Ints,
    Ints32,
    Tiles,
    cut,
    tile,
)
from weft.kernels.paged_attention.triton_kernels import attend_kernel, merge_kernel

# Rows of a tile: queries times the heads that share their keys. Few queries (decode) take the
# narrow one. Both are below 64, from which on Hopper's Triton chooses another matrix instruction
# (wgmma), whose sums may round differently.
NARROW_ROWS = 16
WIDE_ROWS = 32

# Keys of a tile. More than WIDE_ROWS, so that for both kinds of tile the warps lie along the keys
# and a row's weights are summed in the same order.
KEYS = 64

# Partial results of one call at most: 32 MiB with 32 heads of 128.
PARTIALS_MAX = 2048

# Programs for each multiprocessor; they take their work from a list. Two of 8 warps fit.
PROGRAMS_PER_PROCESSOR = 2

# Heads that one program of the merge computes.
MERGED_HEADS = 8

# Launches: index of their count in the packed array.
NARROW, WIDE, MERGE = range(3)

# Sections of the packed array begin at multiples of 64 bytes: a kernel is compiled anew for
# pointers that are aligned differently.
ALIGNMENT = 16

LOG2_E = math.log2(math.e)

# The interpreter multiplies bfloat16 as if it were an integer.
INTERPRETED = triton.knobs.runtime.interpret


class Room(NamedTuple):
    """What a plan that is captured in a CUDA graph must hold in any step."""

    rows: int  # of one query each
    pages: int  # of the longest row


# Takes how many integers a plan has, and for how many there must be room on the device. Returns
# where to write the former, and where the latter are as soon as something is launched.
Place = Callable[[int, int], tuple[Ints32, Tensor]]


class Plan:
    """How one step's rows attend: made once, used in every layer.

    Without ``room`` a plan is for one step. With it, every launch has the same shape whatever the
    step is, and ``fill`` describes the next step; so ``attend`` can be captured in a CUDA graph, if
    ``place`` gives the next step's arrays the same place.
    """

    def __init__(
        self,
        page_table: Ints,
        starts: Ints,
        positions: Ints,
        page_tokens: int,
        *,
        heads: int,
        kv_heads: int,
        device: torch.device,
        processors: int,
        room: Room | None = None,
        place: Place | None = None,
    ) -> None:
        """The first three as for the reference, in host memory; no row is empty.

        ``heads`` is a multiple of ``kv_heads``; the queries of one row are at adjacent positions.
        ``processors`` are the device's, each of which runs some programs at a time. ``place`` says
        where the arrays go; None: to memory of their own, which stays the same, by their own copy.
        """
        self._page_tokens = page_tokens
        self._heads, self._kv_heads = heads, kv_heads
        self._device = device
        self._programs = processors * PROGRAMS_PER_PROCESSOR
        self._room = room
        self._place = place
        self._own: Tensor | None = None
        self._sections: list[Tensor] = []
        self._partials: tuple[Tensor, Tensor] | None = None
        self.fill(page_table, starts, positions)

    def fill(self, page_table: Ints, starts: Ints, positions: Ints) -> None:
        """Describe a step."""
        narrow_tokens, wide_tokens = self._tokens(NARROW_ROWS), self._tokens(WIDE_ROWS)
        counts = np.diff(starts)
        is_narrow = counts <= narrow_tokens
        tiles = tile(starts, positions, np.where(is_narrow, narrow_tokens, wide_tokens))
        which = is_narrow[tiles.row]
        narrow = self._cut(tiles, which, NARROW_ROWS, 0)
        wide = self._cut(tiles, ~which, WIDE_ROWS, narrow.partials)
        merges = np.concatenate((narrow.merges, wide.merges))
        # What no query sees is not copied.
        table = page_table[:, : int(positions.max()) // self._page_tokens + 1].astype(np.int32)
        header = np.array([len(narrow.items), len(wide.items), len(merges), table.shape[1]])
        self._launches = header[:3].tolist()
        self._partials_used = narrow.partials + wide.partials
        self._copy([header.astype(np.int32), narrow.items, wide.items, merges, table])

    def attend(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        *,
        scale: float,
        window: int | None,
        soft_cap: float | None = None,
    ) -> Tensor:
        """Compute what ``reference.paged_attention`` computes.

        q may be part of a wider projection, the caches views with any distance from page to page.
        With ``room``, what lies past the step's own queries is not written.
        """
        tokens, heads, size = q.shape
        _, page_tokens, kv_heads, _ = k_cache.shape
        assert (heads, kv_heads, page_tokens) == (self._heads, self._kv_heads, self._page_tokens)
        assert q.stride()[1:] == (size, 1)
        assert k_cache.stride() == v_cache.stride()
        assert k_cache.stride()[1:] == (kv_heads * size, size, 1)
        assert k_cache.dtype == v_cache.dtype
        out = torch.empty(tokens, heads, size, dtype=q.dtype, device=q.device)
        sums, softmax = self._scratch(size, q.device)
        counts, narrow, wide, merges, table = self._sections
        if soft_cap is None:
            scale_log2, cap_log2 = scale * LOG2_E, 0.0
        else:
            scale_log2, cap_log2 = scale * LOG2_E * 2 / soft_cap, soft_cap * LOG2_E
        block_d = max(16, triton.next_power_of_2(size))
        for which, items, rows in ((NARROW, narrow, NARROW_ROWS), (WIDE, wide, WIDE_ROWS)):
            programs = self._grid(which, self._launches[which] * self._parallel(rows))
            if programs == 0:
                continue
            attend_kernel[(programs,)](
                out, sums, softmax, q, k_cache, v_cache, counts, items, table,
                heads, kv_heads, q.stride(0), k_cache.stride(0), scale_log2, cap_log2, window or 0,
                WHICH=which, HAS_SOFT_CAP=soft_cap is not None, HAS_WINDOW=window is not None,
                GROUP=heads // kv_heads, HEADS=min(heads // kv_heads, rows), HEAD_DIM=size,
                PAGE_TOKENS=page_tokens, SPLIT=SPLIT_TOKENS,
                BLOCK_M=rows, BLOCK_N=KEYS, BLOCK_D=block_d,
                UPCAST=INTERPRETED and torch.bfloat16 in (q.dtype, k_cache.dtype),
                **launch_options(rows, block_d, q.element_size()),
            )  # fmt: skip
        programs = self._grid(MERGE, self._launches[MERGE] * triton.cdiv(heads, MERGED_HEADS))
        if programs:
            merge_kernel[(programs,)](
                out, sums, softmax, counts, merges, heads, window or 0,
                WHICH=MERGE, HAS_WINDOW=window is not None, HEAD_DIM=size, SPLIT=SPLIT_TOKENS,
                BLOCK_H=MERGED_HEADS, BLOCK_D=block_d, num_warps=4,
            )  # fmt: skip
        return out

    def _tokens(self, rows: int) -> int:
        """Queries of a tile of so many rows."""
        return rows // min(self._heads // self._kv_heads, rows)

    def _parallel(self, rows: int) -> int:
        """Programs of one item."""
        group = self._heads // self._kv_heads
        return self._kv_heads * -(-group // min(group, rows))

    def _cut(self, tiles: Tiles, which: NDArray[np.bool_], rows: int, first: int) -> Cut:
        return cut(
            Tiles(*(column[which] for column in tiles)),
            heads_parallel=self._parallel(rows),
            programs=self._programs,
            first=first,
            end=PARTIALS_MAX,
        )

    def _copy(self, sections: list[Ints32]) -> None:
        """Put all sections into one array on the device."""
        sizes = [section.size for section in sections]
        if self._room is not None:
            rows, pages = self._room
            items = (rows + PARTIALS_MAX) * len(ITEM_FIELDS)
            room = [sizes[0], items, 0, rows * len(MERGE_FIELDS), rows * pages]
            assert all(a <= b for a, b in zip(sizes, room, strict=True)), f"{sizes} in {room}"
            sizes = room
        ends = np.cumsum([-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]).tolist()
        begins = [0, *ends[:-1]]
        count = begins[-1] + sections[-1].size
        source = None
        if self._place is not None:
            host, packed = self._place(count, ends[-1])
        else:
            # Otherwise than from pinned memory, the host waits for the copy.
            pinned = self._device.type == "cuda"
            source = torch.empty(count, dtype=torch.int32, pin_memory=pinned)
            host, packed = source.numpy(), self._own_memory(ends[-1])
        for begin, section in zip(begins, sections, strict=True):
            host[begin : begin + section.size] = section.reshape(-1)
        if source is not None:
            packed[:count].copy_(source, non_blocking=True)
        self._sections = [packed[a:b] for a, b in zip(begins, ends, strict=True)]

    def _own_memory(self, room: int) -> Tensor:
        if self._own is None:
            self._own = torch.empty(room, dtype=torch.int32, device=self._device)
        return self._own

    def _grid(self, which: int, programs: int) -> int:
        """How many programs a launch has; 0: it is left out."""
        if self._room is None:
            return min(programs, self._programs)
        return 0 if which == WIDE else self._programs

    def _scratch(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Memory for partial results, which all layers share."""
        if self._partials is None:
            slots = self._partials_used if self._room is None else PARTIALS_MAX
            shape = slots, self._heads
            self._partials = (
                torch.empty(*shape, size, dtype=torch.float32, device=device),
                torch.empty(*shape, 2, dtype=torch.float32, device=device),
            )
        return self._partials


def launch_options(rows: int, block_d: int, element_bytes: int) -> dict[str, int]:
    """Return what the compiler is asked for, so that two programs fit a multiprocessor.

    Where keys' places are themselves read from memory, 3 stages are one tile ahead, 5 are two.
    """
    options = {"num_warps": 8, "num_stages": 5 if block_d * element_bytes <= 128 else 3}
    # Left to itself, ptxas spills to save registers, or takes more than are needed.
    if element_bytes == 4:  # multiplied without matrix instructions
        options |= {"num_warps": rows // 2, "maxnreg": 128}
    elif rows == NARROW_ROWS and block_d <= 128:
        options["maxnreg"] = 128
    return options
