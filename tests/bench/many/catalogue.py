"""A model and many adapters of it, made within seconds: PEFT's folders, without PEFT."""

import json
import random
from itertools import accumulate, cycle
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from transformers import Qwen2Config

from tests.bench.peers import tokenizer
from tests.checkpoints import HALF_BILLION, MODULES, random_model
from weft.actors.adapters.base import MODULES as BLOCKS
from weft.actors.adapters.base import BaseShapes

RANKS = (32, 8, 64, 16)  # of adapters in turn

# Random weights that adapters are cut out of, each at places of its own.
POOL_NUMBERS = 2**24


class Shape(NamedTuple):
    """A model's fields, its type, and what its adapters change."""

    fields: dict
    dtype: torch.dtype
    modules: tuple[str, ...]
    layers: int


_TINY = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "max_position_embeddings": 512,
}  # fmt: skip
# What PEFT chooses for these architectures.
_CHOSEN = ("q_proj", "v_proj")

SHAPES = {
    "tiny": Shape(_TINY, torch.float32, MODULES, 2),
    "tiny-qv": Shape(_TINY, torch.float32, _CHOSEN, 2),
    # On all modules 200 of them would be 7 GB.
    "0.5b": Shape(HALF_BILLION, torch.bfloat16, _CHOSEN, 24),
}


class Catalogue(NamedTuple):
    """A model's folder, and its adapters' folders and ranks by name."""

    model: Path
    base: BaseShapes
    shape: Shape
    adapters: dict[str, Path]
    ranks: dict[str, int]


def make(shape_name, place, count):
    """Return a model with ``count`` random adapters, saved in bfloat16 under ``place``."""
    shape = SHAPES[shape_name]
    config = Qwen2Config(bos_token_id=None, eos_token_id=None, pad_token_id=None, **shape.fields)
    model = place / "model"
    random_model(config, dtype=shape.dtype).save_pretrained(model)
    tokenizer.save(model, config.vocab_size)
    base = BaseShapes.load(str(model))
    pool = torch.randn(POOL_NUMBERS, generator=torch.Generator().manual_seed(0)).bfloat16()
    ranks = dict(zip((f"a{index}" for index in range(count)), cycle(RANKS), strict=False))
    adapters = {}
    for index, (name, rank) in enumerate(ranks.items()):
        adapters[name] = place / "adapters" / name
        _save(adapters[name], rank, base, shape, pool, random.Random(index))
    return Catalogue(model, base, shape, adapters, ranks)


def _save(folder, rank, base, shape, pool, rng):
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank,
        "target_modules": list(shape.modules),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for layer in range(shape.layers):
        for module in shape.modules:
            inputs, outputs = base.shape(module)
            name = f"base_model.model.model.layers.{layer}.{BLOCKS[module]}.{module}.lora"
            for side, size in (("A", (rank, inputs)), ("B", (outputs, rank))):
                start = rng.randrange(POOL_NUMBERS - size[0] * size[1])
                drawn = pool[start : start + size[0] * size[1]].view(size)
                scale = inputs**-0.5 if side == "A" else 0.7 * rank**-0.5
                tensors[f"{name}_{side}.weight"] = drawn * scale
    save_file(tensors, folder / "adapter_model.safetensors")


def zipf(names, count, rng):
    """Draw so many names: the n-th is drawn in proportion to 1 / n."""
    weights = list(accumulate(1 / (index + 1) for index in range(len(names))))
    return rng.choices(names, cum_weights=weights, k=count)
