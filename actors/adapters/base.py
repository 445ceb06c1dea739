"""The base model's shapes, as far as adapters change it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from weft.actors.adapters.safetensors import HEADER_BYTES_MAX
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

    @staticmethod
    def load(model: str) -> BaseShapes:
        """Read a model's folder. Raises ``ConfigError``."""
        path = Path(model, "config.json")
        try:
            fields = json.loads(path.read_bytes())
            # Null stands for a derived value.
            given = {name: value for name, value in fields.items() if value is not None}
            return msgspec.convert(given, BaseShapes)
        except (
            OSError, ValueError, AttributeError, RecursionError, msgspec.ValidationError,
        ) as error:  # fmt: skip
            raise ConfigError(f"model: {path}: {error}") from None

    def shape(self, module: str, tensor_parallel_size: int = 1) -> LinearShape:
        """Return the sizes of a module, one of ``MODULES``, or of one rank's share of it.

        Heads and the intermediate size are divided among the ranks. Each rank has a whole KV head
        at least.
        """

        def share(count: int) -> int:
            return -(-count // tensor_parallel_size)

        head = self.head_dim or self.hidden_size // self.num_attention_heads
        queries = share(self.num_attention_heads) * head
        keys = share(self.num_key_value_heads or self.num_attention_heads) * head
        intermediate = share(self.intermediate_size)
        return {
            "q_proj": LinearShape(self.hidden_size, queries),
            "k_proj": LinearShape(self.hidden_size, keys),
            "v_proj": LinearShape(self.hidden_size, keys),
            "o_proj": LinearShape(queries, self.hidden_size),
            "gate_proj": LinearShape(self.hidden_size, intermediate),
            "up_proj": LinearShape(self.hidden_size, intermediate),
            "down_proj": LinearShape(intermediate, self.hidden_size),
        }[module]

    def adapter_bytes_max(self, rank_max: int) -> int:
        """Return more bytes than any adapter's file needs: every module, float32."""
        return HEADER_BYTES_MAX + 4 * rank_max * self.num_hidden_layers * sum(self._sizes())

    def _sizes(self) -> Iterator[int]:
        return (sum(self.shape(module)) for module in MODULES)
