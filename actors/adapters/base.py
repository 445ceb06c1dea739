"""The base model's shapes, as far as adapters change it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from weft.actors.adapters.safetensors import HEADER_BYTES_MAX
from weft.actors.shards import Shard, Widths, shard
from weft.runtime.config import ConfigError

MODULES = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}

# Modules of the model, not of a layer: token ids are an embedding's inputs and a head's outputs.
EMBEDDING, HEAD = "embed_tokens", "lm_head"

# Rows beyond the base's vocabulary. Tokens of a chat are dozens, those of a language some thousand.
ADDED_TOKENS_MAX = 65536

_Size = Annotated[int, msgspec.Meta(gt=0)]


class LinearShape(NamedTuple):
    """A linear layer's sizes."""

    inputs: int
    outputs: int


class BaseShapes(msgspec.Struct, frozen=True):
    """A decoder of the Llama family (Llama, Mistral, Qwen 2 and 3): fields of config.json."""

    num_hidden_layers: _Size
    hidden_size: _Size
    intermediate_size: _Size
    num_attention_heads: _Size
    num_key_value_heads: _Size | None = None
    head_dim: _Size | None = None
    vocab_size: Annotated[int, msgspec.Meta(ge=0)] = 0
    tie_word_embeddings: bool = False  # as all four families have it where it is not said
    model_type: str = ""
    folder: str = ""  # where the weights are

    @staticmethod
    def load(model: str) -> BaseShapes:
        """Read a model's folder. Raises ``ConfigError``."""
        path = Path(model, "config.json")
        try:
            fields = json.loads(path.read_bytes())
            # Null stands for a derived value.
            given = {name: value for name, value in fields.items() if value is not None}
            return msgspec.convert(given | {"folder": model}, BaseShapes)
        except (
            OSError, ValueError, AttributeError, RecursionError, msgspec.ValidationError,
        ) as error:  # fmt: skip
            raise ConfigError(f"model: {path}: {error}") from None

    def shape(self, module: str) -> LinearShape:
        """Return the sizes of a module, one of ``MODULES`` or an embedding or a head."""
        queries = self.num_attention_heads * self._head_dim
        keys = self._kv_heads * self._head_dim
        return {
            "q_proj": LinearShape(self.hidden_size, queries),
            "k_proj": LinearShape(self.hidden_size, keys),
            "v_proj": LinearShape(self.hidden_size, keys),
            "o_proj": LinearShape(queries, self.hidden_size),
            "gate_proj": LinearShape(self.hidden_size, self.intermediate_size),
            "up_proj": LinearShape(self.hidden_size, self.intermediate_size),
            "down_proj": LinearShape(self.intermediate_size, self.hidden_size),
            EMBEDDING: LinearShape(self.vocab_size, self.hidden_size),
            HEAD: LinearShape(self.hidden_size, self.vocab_size),
        }[module]

    def norms(self) -> dict[str, int]:
        """Return the size of every norm, by its name in the base without "model."."""
        sizes = {"norm": self.hidden_size}
        for layer in range(self.num_hidden_layers):
            of_layer = f"layers.{layer}"
            sizes[f"{of_layer}.input_layernorm"] = self.hidden_size
            sizes[f"{of_layer}.post_attention_layernorm"] = self.hidden_size
            if self.model_type == "qwen3":
                sizes[f"{of_layer}.self_attn.q_norm"] = self._head_dim
                sizes[f"{of_layer}.self_attn.k_norm"] = self._head_dim
        return sizes

    def part(self, module: str, shard: Shard) -> LinearShape:
        """Return the sizes of what one rank has of a module."""
        whole, inputs, outputs = self.shape(module), shard.inputs(module), shard.outputs(module)
        return LinearShape(
            inputs.size if inputs else whole.inputs, outputs.size if outputs else whole.outputs
        )

    def shards(self, size: int) -> list[Shard]:
        """Return what each of ``size`` ranks has. Raises ``ConfigError`` if that cannot be."""
        widths = Widths(
            self.num_attention_heads,
            self._kv_heads,
            self._head_dim,
            self.intermediate_size,
            self.vocab_size,
        )
        return [shard(widths, rank, size) for rank in range(size)]

    def adapter_bytes_max(self, rank_max: int, whole_bytes_max: int) -> int:
        """Return more bytes than any adapter's file needs: every module, float32.

        ``whole_bytes_max`` is what whole modules may take, if the base has so many.
        """
        # One rank more, for magnitudes or biases.
        layers = 4 * (rank_max + 1) * self.num_hidden_layers * sum(self._sizes())
        tokens = self.vocab_size + ADDED_TOKENS_MAX
        vocabulary = 2 * 4 * rank_max * (tokens + self.hidden_size)
        # Of a resized embedding and of a head, PEFT saves up to three copies.
        whole = 4 * (2 * 3 * tokens * self.hidden_size + sum(self.norms().values()))
        return HEADER_BYTES_MAX + layers + vocabulary + min(whole, whole_bytes_max)

    @property
    def _head_dim(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def _kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    def _sizes(self) -> Iterator[int]:
        return (sum(self.shape(module)) for module in MODULES)
