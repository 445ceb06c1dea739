"""What a checkpoint's configuration says about the model, in one form for every decoder served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# Rope types whose frequencies do not depend on the length of the sequence.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


class UnsupportedModel(Exception):
    """The checkpoint needs something that the runner does not have; the message names it."""


@dataclass(frozen=True)
class Architecture:
    """A decoder: Llama, Mistral, Qwen2 or Qwen3 and their relatives."""

    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    epsilon: float
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied: bool
    windows: tuple[int | None, ...]  # by layer: how far back it sees
    context_max: int
    frequencies: Tensor  # [head_dim / 2] float32, radians per position
    rope_scale: float  # of the rotated vectors
    dtype: torch.dtype  # of the weights as saved

    @property
    def q_size(self) -> int:
        """Columns of the query projection."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Columns of the key projection, and of the value projection."""
        return self.kv_heads * self.head_dim

    def module_shape(self, module: str) -> tuple[int, int]:
        """Return (out, in) of a linear module, e.g. "q_proj"."""
        return {
            "q_proj": (self.q_size, self.hidden),
            "k_proj": (self.kv_size, self.hidden),
            "v_proj": (self.kv_size, self.hidden),
            "o_proj": (self.hidden, self.q_size),
            "gate_proj": (self.intermediate, self.hidden),
            "up_proj": (self.intermediate, self.hidden),
            "down_proj": (self.hidden, self.intermediate),
        }[module]


def read(folder: Path) -> Architecture:
    """Read config.json. Raises ``UnsupportedModel``."""
    config = AutoConfig.from_pretrained(folder)
    _refuse(config)
    family = config.model_type
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention_bias = bool(getattr(config, "attention_bias", False))
    frequencies, rope_scale = _rope(config, head_dim)
    return Architecture(
        family=family,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=head_dim,
        vocabulary=config.vocab_size,
        epsilon=config.rms_norm_eps,
        qkv_bias=family == "qwen2" or attention_bias,
        o_bias=family != "qwen2" and attention_bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        qk_norm=family == "qwen3",
        tied=bool(config.tie_word_embeddings),
        windows=_windows(config),
        context_max=config.max_position_embeddings,
        frequencies=frequencies,
        rope_scale=rope_scale,
        dtype=_dtype(config),
    )


def _refuse(config: Any) -> None:
    if config.model_type not in ("llama", "mistral", "qwen2", "qwen3"):
        raise UnsupportedModel(
            f"model_type {config.model_type!r}: llama, mistral, qwen2 and qwen3 are served"
        )
    if config.hidden_act != "silu":
        raise UnsupportedModel(f"hidden_act {config.hidden_act!r}: only 'silu' is served")
    if getattr(config, "quantization_config", None):
        raise UnsupportedModel("quantization_config: save the checkpoint in a floating type first")


def _rope(config: Any, head_dim: int) -> tuple[Tensor, float]:
    parameters = config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise UnsupportedModel(f"rope_type {kind!r}: {', '.join(ROPE_TYPES)} are served")
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModel("partial_rotary_factor: only whole heads are rotated")
    if kind == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        return 1.0 / (parameters["rope_theta"] ** exponents), 1.0
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return frequencies.float(), float(scale)


def _windows(config: Any) -> tuple[int | None, ...]:
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return (window,) * int(config.num_hidden_layers)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _dtype(config: Any) -> torch.dtype:
    dtype = config.dtype
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
