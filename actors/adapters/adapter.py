"""An adapter's weights in one form, named by content."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from weft.actors.adapters import granules, safetensors
from weft.actors.adapters.base import EMBEDDING, HEAD, BaseShapes
from weft.actors.adapters.granules import Size, Spread
from weft.actors.adapters.safetensors import Tensor
from weft.actors.shards import Shard

# What digests are made of. Another way of making them has another name.
DIGEST_FORMAT = "weft adapter 1"

# Names in the normalized file that are part of an update, and of nothing else.
_OF_UPDATES = (".A", ".B", ".bias")


class Adapter(NamedTuple):
    """A valid adapter.

    ``tensors`` maps layers.{i}.{q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj}.{A|B} to A
    [rank, inputs] and B [outputs, rank]; .bias [outputs] is B's, .magnitude [outputs] DoRA's.
    embed_tokens and lm_head have A and B too, whose inputs or outputs are the base's tokens, and
    perhaps .ids [rows] int32 and .rows [rows, hidden], which take the place of the base's rows of
    these tokens, updates included. Norms of its own are named as in the base: layers.{i}.{name}
    [size]. ``scales`` maps names without .A and .B to the factor of B A and of the bias. One with
    ``invocation_tokens`` acts from where a prompt has them last. The digest is sha256 over all of
    it, so equal adapters have one name wherever they come from.
    """

    digest: str
    rank: int  # the largest
    tokens_added: int  # that are beyond the base's vocabulary
    scales: dict[str, float]
    tensors: dict[str, Tensor]
    invocation_tokens: tuple[int, ...] = ()

    @property
    def is_additive(self) -> bool:
        """Whether it is updates alone, which may be multiplied and added to those of others.

        DoRA rescales what the base computes, and some other tensors replace what it has.
        """
        return all(name.endswith(_OF_UPDATES) for name in self.tensors)

    def file(self) -> list[bytes | memoryview]:
        """Return the parts of the file that runners read."""
        metadata = {"digest": self.digest, "scales": _canonical(self.scales)}
        return safetensors.serialize(self.tensors, metadata)

    def granules(self, base: BaseShapes, shards: Sequence[Shard]) -> int:
        """Return the granules of the layer that has most, on the device that has most of it."""
        layers = (
            (int(name.split(".")[1]), name.rpartition(".")[2], self._size(name))
            for name in self.scales
            if name not in (EMBEDDING, HEAD)
        )
        return granules.most_of_any_layer(layers, self._spread(base), base, shards)

    def _size(self, name: str) -> Size:
        has_affine = any(f"{name}.{side}" in self.tensors for side in ("bias", "magnitude"))
        return Size(self.tensors[f"{name}.A"].shape[0], has_affine)

    def _spread(self, base: BaseShapes) -> Spread:
        """Return what is of the model, or too small to fill granules in each layer."""

        def rows(name: str) -> int:
            return self.tensors[name].shape[0] if name in self.tensors else 0

        norms = Counter(size for name, size in base.norms().items() if name in self.tensors)
        return Spread(
            embedding_rank=rows(f"{EMBEDDING}.A"),
            head_rank=rows(f"{HEAD}.A"),
            embedding_rows=rows(f"{EMBEDDING}.rows"),
            head_rows=rows(f"{HEAD}.rows"),
            norms=dict(norms),
        )


def digest_of(
    scales: dict[str, float], tensors: dict[str, Tensor], invocation: tuple[int, ...]
) -> str:
    """Return the name of this content: equal content has the same, whatever it was read from."""
    digest = hashlib.sha256(f"{DIGEST_FORMAT}\n".encode())
    digest.update(_canonical(scales).encode() + b"\n")
    if invocation:
        digest.update(_canonical(["invocation", *invocation]).encode() + b"\n")
    for name, tensor in sorted(tensors.items()):
        digest.update(_canonical([name, tensor.dtype, tensor.shape]).encode() + b"\n")
        digest.update(tensor.data)
    return digest.hexdigest()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
