"""Adapter folders of a small base, made by hand, that tests then spoil."""

import json

import msgspec
import numpy as np
from safetensors.numpy import save

from weft.actors.adapters import building, peft_config, safetensors
from weft.actors.adapters.base import BaseShapes

BASE = BaseShapes(num_hidden_layers=2, hidden_size=8, intermediate_size=12, num_attention_heads=2)
CONFIG = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "bias": "none",
    "target_modules": ["q_proj", "down_proj"],
}  # fmt: skip
TOKENS = 20  # of the base with an embedding
PREFIX = "base_model.model.model.layers"


def tensor_name(module="self_attn.q_proj", side="A", *, layer=0):
    return f"{PREFIX}.{layer}.{module}.lora_{side}.weight"


def tensors(rank=4, *, seed=0):
    """A and B of one attention and one feed-forward module."""
    rng = np.random.default_rng(seed)
    shapes = {
        tensor_name(): (rank, 8),
        tensor_name(side="B"): (8, rank),
        tensor_name("mlp.down_proj", layer=1): (rank, 12),
        tensor_name("mlp.down_proj", "B", layer=1): (8, rank),
    }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def save_base(path):
    """Write a base with an embedding and a head; return its shapes."""
    weights = {
        f"{name}.weight": matrix(seed) for seed, name in enumerate(("embed_tokens", "lm_head"))
    }
    (path / "model.safetensors").write_bytes(save(weights))
    return msgspec.structs.replace(BASE, vocab_size=TOKENS, folder=str(path))


def matrix(seed, *, rows=TOKENS):
    """An embedding or a head; 0 and 1 are the base's."""
    return np.random.default_rng(seed).standard_normal((rows, 8), np.float32)


def own_folder():
    """The files of a valid adapter with more than updates of layers."""
    own = {
        "model.embed_tokens.base_layer.weight": np.vstack((matrix(0), matrix(2, rows=2))),
        "model.embed_tokens.lora_embedding_A": matrix(3, rows=4 * (TOKENS + 2) // 8).reshape(4, -1),
        "model.embed_tokens.lora_embedding_B": matrix(4, rows=4).reshape(8, 4),
        "lm_head.weight": matrix(1) + (np.arange(TOKENS) % 3 == 0)[:, None],
        "model.norm.weight": matrix(5, rows=1)[0],
    }
    config = {
        "target_modules": [*CONFIG["target_modules"], "embed_tokens"],
        "modules_to_save": ["lm_head", "model.norm"],
    }
    named = {f"base_model.model.{name}": tensor.astype(np.float32) for name, tensor in own.items()}
    return folder(config, tensors() | named)


def opened(file):
    """The header of a safetensors file, and the tensors' bytes."""
    end = 8 + int.from_bytes(file[:8], "little")
    return json.loads(file[8:end]), file[end:]


def closed(header, data):
    """A safetensors file of a header, which may be text that is no JSON, and bytes."""
    encoded = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def folder(config=None, weights=None):
    """The files of a valid adapter, but for what is changed."""
    weights = save(tensors()) if weights is None else weights
    return {
        "adapter_config.json": json.dumps(CONFIG | (config or {})).encode(),
        "adapter_model.safetensors": weights if isinstance(weights, bytes) else save(weights),
    }


def build(files, *, rank_max=64, whole_bytes_max=2**20):
    """What the store makes of a folder's files. Raises ``BadAdapter``."""
    config = peft_config.parse(files["adapter_config.json"])
    found = safetensors.parse(files["adapter_model.safetensors"])
    return building.build(config, found, BASE, rank_max=rank_max, whole_bytes_max=whole_bytes_max)
