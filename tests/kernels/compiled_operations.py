"""Every launch but LoRA's of models that are served, for ``compiled``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from tests.kernels.compiled_sgmv import HOPPER_PROCESSORS, MODELS, Model
from weft.kernels.kv_write.triton import kv_write
from weft.kernels.paged_attention.triton import Plan
from weft.kernels.rms_norm.triton import add_rms_norm, rms_norm
from weft.kernels.rotary.triton import rotary_
from weft.kernels.sample.triton import sample
from weft.kernels.silu_mul.triton import silu_mul

META = torch.device("meta")
PAGE_TOKENS = 16
CONTEXT = 8192
VOCABULARIES = {"Llama-3-8B": 128256, "Qwen2.5-7B": 152064, "Qwen2.5-0.5B": 151936}
# Head sizes of other models of the families that are served.
OTHERS = {
    "heads of 80": Model(2560, 6912, 32, 32, 80),
    "heads of 96": Model(3072, 8192, 32, 32, 96),
    "heads of 256": Model(3072, 24576, 16, 16, 256),
}


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


def heads_of(model: Model, tokens: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return q, k and v as parts of one projection, and q and k together."""
    sizes = [model.heads, model.kv_heads, model.kv_heads]
    qkv = meta(tokens, sum(sizes), model.head_dim, dtype=dtype)
    return [*qkv.split(sizes, dim=1), qkv[:, : model.heads + model.kv_heads]]


def pages(model: Model, dtype: torch.dtype) -> list[torch.Tensor]:
    arena = meta(100, 2, PAGE_TOKENS, model.kv_heads, model.head_dim, dtype=dtype)
    return [arena[:, 0], arena[:, 1]]


def attend(
    model: Model, dtype: torch.dtype, *, counts: list[int], window=None, soft_cap=None
) -> None:
    """A step of rows with so many queries each, at the end of long contexts."""
    starts = np.concatenate(([0], np.cumsum(counts)))
    positions = np.concatenate([np.arange(CONTEXT - count, CONTEXT) for count in counts])
    table = np.zeros((len(counts), CONTEXT // PAGE_TOKENS), dtype=np.int64)
    plan = Plan(
        table,
        starts,
        positions,
        PAGE_TOKENS,
        heads=model.heads,
        kv_heads=model.kv_heads,
        device=META,
        processors=HOPPER_PROCESSORS,
    )
    q, *_ = heads_of(model, int(starts[-1]), dtype)
    plan.attend(
        q, *pages(model, dtype), scale=model.head_dim**-0.5, window=window, soft_cap=soft_cap
    )


def elementwise(model: Model, dtype: torch.dtype) -> None:
    tokens = 64
    x = meta(tokens, model.hidden, dtype=dtype)
    weight = meta(model.hidden, dtype=dtype)
    rms_norm(x, weight, 1e-5)
    add_rms_norm(x, meta(tokens, model.hidden, dtype=dtype), weight, 1e-5)
    q, k, v, both = heads_of(model, tokens, dtype)
    rms_norm(q, meta(model.head_dim, dtype=dtype), 1e-5)
    angles = meta(CONTEXT, model.head_dim // 2, dtype=torch.float32)
    longs = meta(tokens, dtype=torch.int64)
    rotary_(both, angles, angles, longs)
    kv_write(k, v, *pages(model, dtype), longs)
    silu_mul(meta(tokens, 2 * model.intermediate, dtype=dtype))


def draw(vocabulary: int) -> None:
    rows = 64
    floats = [meta(rows, dtype=torch.float32) for _ in range(3)]
    temperature, min_p, p = floats
    k, *streams = (meta(rows, dtype=torch.int64) for _ in range(4))
    logits = meta(rows, vocabulary, dtype=torch.float32)
    sample(logits, temperature, min_p, k, p, *streams)


def _cases() -> dict[str, Callable[[], None]]:
    bfloat16 = torch.bfloat16
    cases: dict[str, Callable[[], None]] = {}
    for name, model in MODELS.items():
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            cases[f"elementwise {name} {str(dtype)[6:]}"] = partial(elementwise, model, dtype)
        # One row of a long context is divided, and then merged.
        cases[f"attention {name} decode"] = partial(attend, model, bfloat16, counts=[1])
        cases[f"attention {name} mixed"] = partial(attend, model, torch.float16, counts=[1, 500])
        for option in ({"window": 4096}, {"soft_cap": 50.0}, {"window": 4096, "soft_cap": 50.0}):
            case = partial(attend, model, bfloat16, counts=[1, 500], **option)
            cases[f"attention {name} mixed {' '.join(option)}"] = case
        cases[f"sample {name}"] = partial(draw, VOCABULARIES[name])
    for name, model in OTHERS.items():
        cases[f"attention {name}"] = partial(attend, model, bfloat16, counts=[1, 500])
    small = MODELS["Qwen2.5-0.5B"]
    cases["attention float32"] = partial(attend, small, torch.float32, counts=[1, 500])
    return cases


CASES = _cases()
