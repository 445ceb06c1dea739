"""What a checkpoint's configuration says about the model, in one form for every decoder served."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from weft.actors import shards
from weft.actors.shards import Shard, Widths

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Rope types whose frequencies do not depend on the length of the sequence.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")

# No model comes near it, and nothing overflows below it.
SIZE_MAX = 2**24

_SIZES = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip


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
    shard: Shard | None = None  # which part of a model this is; None: all of it

    @property
    def q_size(self) -> int:
        """Columns of the query projection."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Columns of the key projection, and of the value projection."""
        return self.kv_heads * self.head_dim

    def part(self, rank: int, size: int) -> Architecture:
        """Return the decoder that one rank of a tensor-parallel group computes.

        Its vocabulary is still the whole one. Raises ``ConfigError`` if the model cannot be split
        over ``size`` ranks.
        """
        widths = Widths(
            self.heads, self.kv_heads, self.head_dim, self.intermediate, self.vocabulary
        )
        shard = shards.shard(widths, rank, size)
        return replace(
            self,
            heads=shard.heads.size,
            kv_heads=shard.kv_heads.size,
            intermediate=shard.neurons.size,
            shard=shard,
        )

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
    config = _config(folder)
    _refuse(config)
    family = config.model_type
    head_dim = _head_dim(config)
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


def _config(folder: Path) -> Any:
    path = folder / "config.json"
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedModel(f"{path}: {error}; is this a Hugging Face model folder?") from None
    model_type = fields.get("model_type") if isinstance(fields, dict) else None
    if model_type not in FAMILIES:
        raise UnsupportedModel(
            f"{path}: model_type {model_type!r} is not served; {', '.join(FAMILIES)} are"
        )
    try:
        return AutoConfig.from_pretrained(folder)
    # What the fields of a configuration make transformers raise.
    except (
        OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError,
        StrictDataclassError,
    ) as error:  # fmt: skip
        raise UnsupportedModel(f"{path}: {error}") from None


def _refuse(config: Any) -> None:
    for name in _SIZES:
        _check_size(name, getattr(config, name))
    for name in ("num_key_value_heads", "head_dim"):  # may be left out
        if getattr(config, name, None) is not None:
            _check_size(name, getattr(config, name))
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if kv_heads and heads % kv_heads:
        raise UnsupportedModel(
            f"num_attention_heads ({heads}) is no multiple of num_key_value_heads ({kv_heads})"
        )
    head_dim = _head_dim(config)
    if head_dim < 2 or head_dim % 2:
        raise UnsupportedModel(
            f"head_dim {head_dim}: heads are rotated in pairs, so it must be even"
        )
    if config.hidden_act != "silu":
        raise UnsupportedModel(f"hidden_act {config.hidden_act!r}: only 'silu' is served")
    if getattr(config, "quantization_config", None):
        raise UnsupportedModel("quantization_config: save the checkpoint in a floating type first")


def _check_size(name: str, size: object) -> None:
    if type(size) is not int or not 0 < size < SIZE_MAX:
        raise UnsupportedModel(
            f"{name}: {size!r} is no size; config.json must be the one the model was saved with"
        )


def _head_dim(config: Any) -> int:
    head_dim: int | None = getattr(config, "head_dim", None)
    return head_dim or config.hidden_size // config.num_attention_heads


def _rope(config: Any, head_dim: int) -> tuple[Tensor, float]:
    parameters = config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise UnsupportedModel(f"rope_type {kind!r}: {', '.join(ROPE_TYPES)} are served")
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModel("partial_rotary_factor: only whole heads are rotated")
    try:
        frequencies, scale = _frequencies(config, kind, head_dim)
    # What the numbers of a configuration make torch and transformers raise.
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        raise UnsupportedModel(f"rope_parameters: {error}; mend config.json") from None
    if not (frequencies.isfinite().all() and frequencies.gt(0).all() and math.isfinite(scale)):
        raise UnsupportedModel("rope_parameters: they give no finite frequencies; mend config.json")
    return frequencies, scale


def _frequencies(config: Any, kind: str, head_dim: int) -> tuple[Tensor, float]:
    if kind == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        return 1.0 / (config.rope_parameters["rope_theta"] ** exponents), 1.0
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return frequencies.float(), float(scale)


def _windows(config: Any) -> tuple[int | None, ...]:
    if config.model_type == "llama":  # has no window; transformers ignores a field of that name
        return (None,) * int(config.num_hidden_layers)
    window: int | None = getattr(config, "sliding_window", None)
    if window is not None:
        _check_size("sliding_window", window)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return (window,) * int(config.num_hidden_layers)
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedModel(
                f"layer_types {kind!r}: full_attention and sliding_attention are served"
            )
    if window is None and "sliding_attention" in kinds:
        raise UnsupportedModel("layer_types has sliding_attention: sliding_window must be set")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _dtype(config: Any) -> torch.dtype:
    dtype = config.dtype
    if dtype is None:
        return torch.float32
    if dtype not in DTYPES:
        raise UnsupportedModel(f"dtype {dtype}: convert to float32, bfloat16 or float16 first")
    return dtype  # type: ignore[no-any-return]
