"""The LoRA launches of models that are served, for ``compiled``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from weft.kernels.sgmv import granules
from weft.kernels.sgmv.granules import Tables
from weft.kernels.sgmv.plan import Counts
from weft.kernels.sgmv.triton import Limits, PagedLora, Plan

HOPPER_PROCESSORS = 132


class Model(NamedTuple):
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int

    def sites(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Return of each site the columns of x, and of each part of y."""
        query, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "qkv": (self.hidden, (query, kv, kv)),
            "o": (query, (self.hidden,)),
            "gate_up": (self.hidden, (self.intermediate, self.intermediate)),
            "down": (self.intermediate, (self.hidden,)),
        }


MODELS = {
    "Llama-3-8B": Model(4096, 14336, 32, 8, 128),
    "Qwen2.5-7B": Model(3584, 18944, 28, 4, 128),
    "Qwen2.5-0.5B": Model(896, 4864, 14, 2, 64),
}
# Tokens of a step, and the adapters of a row.
STEPS = {"decode": (64, 1), "prefill": (8192, 1), "several adapters": (64, 4)}


def launch(model: Model, site: str, tokens: int, *, row_adapters: int, rank: int, dtype) -> None:
    """Launch shrink and expand of one site of one layer for a full step of distinct adapters."""
    sites = model.sites()
    page_elements = 2 * 16 * model.kv_heads * model.head_dim
    page_granules = page_elements // (granules.RANKS * granules.COLUMNS)
    meta = torch.device("meta")
    arena = torch.empty(1, 1000, page_granules, 8, 128, dtype=dtype, device=meta)
    tables = Tables(64, 1, len(sites), 512)
    segments = 64 if row_adapters > 1 else 0
    limits = Limits(tokens, 64, rank, row_adapters=row_adapters, segments_of_sums=segments)
    widths = [parts for _, parts in sites.values()]
    lora = PagedLora(
        arena, tables, widths, limits, compute_dtype=dtype, processors=HOPPER_PROCESSORS
    )
    planner = lora.planner(tokens, has_sums=row_adapters > 1)
    bounds: Counts = planner.bounds
    ints = torch.empty(bounds.ints, dtype=torch.int32, device=meta)
    features, parts = sites[site]
    x = torch.empty(tokens, features, dtype=dtype, device=meta)
    y = torch.empty(tokens, sum(parts), dtype=dtype, device=meta)
    lora.add(y, x, 0, list(sites).index(site), Plan(ints, bounds, planner))


def _cases() -> dict[str, Callable[[], None]]:
    def case(model: str, step: str, site: str, rank: int, dtype: torch.dtype) -> None:
        tokens, row_adapters = STEPS[step]
        name = f"sgmv {model} {step} {site} rank {rank} {str(dtype)[6:]}"
        cases[name] = partial(
            launch, MODELS[model], site, tokens, row_adapters=row_adapters, rank=rank, dtype=dtype
        )

    cases: dict[str, Callable[[], None]] = {}
    for model in MODELS:
        for site in ("qkv", "o", "gate_up", "down"):
            case(model, "decode", site, 64, torch.bfloat16)
            case(model, "prefill", site, 64, torch.bfloat16)
    for step in STEPS:
        for rank in (8, 512):
            case("Llama-3-8B", step, "gate_up", rank, torch.bfloat16)
        for dtype in (torch.float16, torch.float32):
            case("Qwen2.5-7B", step, "qkv", 64, dtype)
    return cases


CASES = _cases()
