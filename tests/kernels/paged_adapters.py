"""Random adapters in scattered pages of a poisoned arena, for tests of the paged kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weft.kernels.sgmv import granules, packing
from weft.kernels.sgmv.granules import Affine, Module, Tables
from weft.kernels.sgmv.reference import Part, sgmv
from weft.kernels.sgmv.triton import Limits, PagedLora, Plan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Ranks = Sequence[int | None]  # of each part; None: the adapter lacks it


@dataclass
class Adapters:
    """What the slots of one site hold, layer by layer, and the kernels that read it."""

    lora: PagedLora
    tables: Tables
    arena: Tensor  # typed
    parts: list[list[list[Part]]]  # [layers][slots]
    widths: tuple[int, ...]
    features: int
    dtype: torch.dtype  # of x and y

    def fill(self, slot: int, ranks: Sequence[Ranks], pages: Sequence[int]) -> None:
        """Replace what a slot holds by a random adapter of ``[layer][part]`` ranks."""
        self.tables.clear(slot, pages)
        for layer, in_layer in enumerate(ranks):
            modules, column = [], 0
            self.parts[layer][slot] = []
            for part, (width, rank) in enumerate(zip(self.widths, in_layer, strict=False)):
                if rank is not None:
                    a = (torch.randn(rank, self.features) / self.features**0.5).to(self.arena.dtype)
                    b = (torch.randn(width, rank) / 4).to(self.arena.dtype)
                    scale = 0.5 + part
                    affine = None
                    if (slot + part) % 2:
                        affine = Affine(1 + torch.randn(width) / 4, torch.randn(width))
                    modules.append(Module(part, a, b, scale, affine))
                    self.parts[layer][slot].append(Part(a, b, column, scale, affine))
                column += width
            laid = self.tables.lay_out(slot, layer, [modules], self.arena.dtype)
            packing.write(self.arena, layer, pages, laid)
            # Not zeros, as the rest of the last page is now: what lies there is another's.
            own = self.arena[layer, pages].view(-1, granules.RANKS, granules.COLUMNS)
            own[laid.granules :] = float("nan")
            self.arena[layer, pages] = own.view(len(pages), *self.arena.shape[2:])
        self.lora.update(slot)

    def batch(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Return random x and y as parts of wider tensors of NaN."""
        wide = torch.full((tokens + 2, self.features + 3), float("nan"))
        wide[1:-1, 2:-1] = torch.randn(tokens, self.features)
        around = torch.full((tokens + 2, sum(self.widths) + 3), float("nan"))
        around[1:-1, 2:-1] = torch.randn(tokens, sum(self.widths))
        x, y = (t.to(DEVICE, self.dtype)[1:-1, 2:-1] for t in (wide, around))
        return x, y

    def add(
        self,
        y: Tensor,
        x: Tensor,
        starts: Sequence[int],
        slots: Sequence[int] | Sequence[Sequence[int]],
        *,
        layer: int = 0,
        weights: Sequence[Sequence[float]] | None = None,
        tokens_max: int | None = None,
    ) -> Tensor:
        """Return y with the updates added by the kernels; y itself stays as it is."""
        has_sums = weights is not None
        planner = self.lora.planner(tokens_max or len(x), has_sums=has_sums)
        ints = np.full(planner.bounds.ints, -1, dtype=np.int32)
        factors = None if weights is None else np.array(weights, dtype=np.float32)
        counts = planner.lay_out(
            ints, np.array(starts), np.array(slots, dtype=np.int64), self.lora.groups, factors
        )
        ints[counts.ints :] = -1  # none of it may be read
        plan = Plan(torch.from_numpy(ints).to(DEVICE), counts, planner)
        guarded = torch.full((len(y) + 2, y.shape[1] + 3), 7.0, dtype=y.dtype, device=DEVICE)
        result = guarded[1:-1, 2:-1]
        result[:] = y
        self.lora.add(result, x, layer, 0, plan)
        assert guarded[[0, -1]].eq(7).all()
        assert guarded[:, [0, 1, -1]].eq(7).all()
        return result

    def expected(
        self,
        y: Tensor,
        x: Tensor,
        starts: Sequence[int],
        slots: Sequence[int] | Sequence[Sequence[int]],
        *,
        layer: int = 0,
        weights: Sequence[Sequence[float]] | None = None,
    ) -> Tensor:
        """Return the same by the reference, in float32, one adapter of a row after another."""
        result = y.float().cpu().clone()
        own = np.array(slots, dtype=np.int64)
        own = own[:, None] if own.ndim == 1 else own
        factors = np.ones(own.shape) if weights is None else np.array(weights)
        for i, segment in enumerate(zip(own, factors, strict=True)):
            for slot, factor in zip(*segment, strict=True):
                parts = self.parts[layer]
                sgmv(result, x.float().cpu(), starts[i : i + 2], [slot], parts, [float(factor)])
        return result


def adapters(
    ranks: Sequence[Ranks] | Sequence[Sequence[Ranks]],
    widths: tuple[int, ...],
    features: int,
    *,
    dtype: torch.dtype = torch.float32,
    weights_dtype: torch.dtype | None = None,
    tokens: int = 512,
    row_adapters: int = 1,
    rank_max: int = 32,
    page_granules: int = 3,
    processors: int = 1,
    pages_before: int = 0,
) -> Adapters:
    """Fill slots with adapters of the given ``[slot][part]`` ranks, or ``[layer][slot][part]``.

    ``rank_max`` is what is configured. Whatever no adapter owns of the arena is NaN, but for
    ``pages_before`` at its front.
    """
    layers = ranks if ranks and ranks[0] and isinstance(ranks[0][0], Sequence) else [ranks]
    weights_dtype = weights_dtype or dtype
    slots = len(layers[0])
    pages_each = 2 + _granules_max(layers, widths, features) // page_granules
    pages = slots * pages_each + 5
    page_bytes = page_granules * granules.RANKS * granules.COLUMNS * weights_dtype.itemsize
    # Zeros of numpy take no memory until they are written.
    raw = np.zeros((len(layers), pages_before + pages, page_bytes), dtype=np.uint8)
    raw[:, pages_before:] = 255  # NaN in every type
    typed = granules.typed(torch.from_numpy(raw), weights_dtype).to(DEVICE)
    tables = Tables(slots, len(layers), 1, pages_each)
    lora = PagedLora(
        typed,
        tables,
        [widths],
        Limits(tokens, 64, rank_max, row_adapters=row_adapters, segments_of_sums=64),
        compute_dtype=dtype,
        processors=processors,
    )
    parts: list[list[list[Part]]] = [[[] for _ in range(slots)] for _ in layers]
    made = Adapters(lora, tables, typed, parts, widths, features, dtype)
    free = (pages_before + torch.randperm(pages)).tolist()
    for slot in range(slots):
        own = [free.pop() for _ in range(pages_each)]
        made.fill(slot, [layer[slot] for layer in layers], own)
    return made


def _granules_max(layers: Sequence[Sequence[Ranks]], widths: Sequence[int], features: int) -> int:
    return max(
        sum(-(-(rank or 0) // 8) * (-(-features // 128) + -(-width // 128)) + -(-width // 256)
            for rank, width in zip(slot, widths, strict=False))
        for layer in layers
        for slot in layer
    )  # fmt: skip
