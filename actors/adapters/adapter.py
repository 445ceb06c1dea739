"""An adapter's weights, checked against the base and brought into one form, named by content."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from weft.actors.adapters import granules, safetensors
from weft.actors.adapters.base import MODULES, BaseShapes
from weft.actors.adapters.errors import BadAdapter, shown_name
from weft.actors.adapters.peft_config import AdapterConfig
from weft.actors.adapters.safetensors import Tensor
from weft.actors.shards import Shard

# PEFT's names: "model." is missing if the adapter was trained without the language model's head,
# "default" was kept by old versions.
_TENSOR_NAME = re.compile(
    r"base_model\.model\.(?P<module>(?:model\.)?layers\.(?P<layer>0|[1-9][0-9]{0,8})"
    r"\.(?P<block>self_attn|mlp)\.(?P<name>[a-z]+_proj))\.lora_(?P<side>[AB])(?:\.default)?\.weight"
)


class _Place(NamedTuple):
    """Where a tensor belongs."""

    layer: int
    name: str
    module: str  # its name in the base


class Adapter(NamedTuple):
    """A valid adapter.

    ``tensors`` maps layers.{i}.{q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj}.{A|B} to A
    [rank, inputs] and B [outputs, rank]; ``scales`` maps names without .A and .B to the factor of
    B A. The digest is sha256 over both, so equal adapters have one name wherever they come from.
    """

    digest: str
    rank: int  # the largest
    scales: dict[str, float]
    tensors: dict[str, Tensor]

    def file(self) -> list[bytes | memoryview]:
        """Return the parts of the file that runners read."""
        metadata = {"digest": self.digest, "scales": _canonical(self.scales)}
        return safetensors.serialize(self.tensors, metadata)

    def granules(self, base: BaseShapes, shards: Sequence[Shard]) -> int:
        """Return the granules of the layer that has most, on the device that has most of it."""
        ranks = (
            (int(layer), module, self.tensors[f"layers.{layer}.{module}.A"].shape[0])
            for _, layer, module in (name.split(".") for name in self.scales)
        )
        return granules.most_of_any_layer(ranks, base, shards)


def build(
    config: AdapterConfig, tensors: dict[str, Tensor], base: BaseShapes, *, rank_max: int
) -> Adapter:
    """Check every tensor and return the adapter. Raises ``BadAdapter`` for the first at fault."""
    sides: dict[_Place, dict[str, Tensor]] = {}
    for name, tensor in sorted(tensors.items()):
        place, side = _place(name, config, base)
        pair = sides.setdefault(place, {})
        if side in pair:
            raise BadAdapter(f"tensor {shown_name(name)}: the module has two; remove one")
        pair[side] = tensor
    if not sides:
        raise BadAdapter("there is no tensor; train the adapter, or leave it out")
    _check_spelling(list(sides))
    scales = {}
    found = {}
    rank = 0
    for place, pair in sides.items():
        rank = max(rank, _check_pair(place, pair, config, base, rank_max))
        key = f"layers.{place.layer}.{place.name}"
        scales[key] = config.scale(place.module)
        found.update({f"{key}.{side}": tensor for side, tensor in pair.items()})
    return Adapter(_digest(scales, found), rank, scales, found)


def _place(name: str, config: AdapterConfig, base: BaseShapes) -> tuple[_Place, str]:
    tensor = f"tensor {shown_name(name)}"
    match = _TENSOR_NAME.fullmatch(name)
    if match is None or MODULES.get(match["name"]) != match["block"]:
        raise BadAdapter(
            f"{tensor}: not supported; an adapter may change {', '.join(MODULES)} of the "
            f"layers, as lora_A.weight and lora_B.weight"
        )
    layer = int(match["layer"])
    if layer >= base.num_hidden_layers:
        raise BadAdapter(
            f"{tensor}: the base has {base.num_hidden_layers} layers; was the adapter trained for "
            f"another base?"
        )
    if not config.targets(match["module"]):
        raise BadAdapter(
            f"{tensor}: target_modules does not cover it; mend adapter_config.json, or remove the "
            f"tensor"
        )
    return _Place(layer, match["name"], match["module"]), match["side"]


def _check_spelling(places: list[_Place]) -> None:
    named: dict[tuple[int, str], str] = {}
    for place in places:
        other = named.setdefault((place.layer, place.name), place.module)
        if other != place.module:
            raise BadAdapter(
                f"tensors of {other} and {place.module}: the same module twice; keep one"
            )


def _check_pair(
    place: _Place, pair: dict[str, Tensor], config: AdapterConfig, base: BaseShapes, rank_max: int
) -> int:
    """Check one module's A and B and return its rank."""
    for side in ("A", "B"):
        if side not in pair:
            raise BadAdapter(f"{place.module}: lora_{side} is missing; save the adapter again")
    rank = config.rank(place.module)
    if rank > rank_max:
        raise BadAdapter(
            f"r: rank {rank} of {place.module} is more than max_lora_rank ({rank_max}); raise "
            f"max_lora_rank, or train with a lower rank"
        )
    shape = base.shape(place.name)
    for side, expected in (("A", (rank, shape.inputs)), ("B", (shape.outputs, rank))):
        if pair[side].shape != expected:
            raise BadAdapter(
                f"{place.module}.lora_{side}: shape {list(pair[side].shape)}, expected "
                f"{list(expected)} for rank {rank} and this base; was the adapter trained for "
                f"another one?"
            )
        if not pair[side].is_finite:
            raise BadAdapter(
                f"{place.module}.lora_{side}: a value is infinite or NaN; train the adapter again"
            )
    return rank


def _digest(scales: dict[str, float], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(b"weft adapter 1\n")
    digest.update(_canonical(scales).encode() + b"\n")
    for name, tensor in sorted(tensors.items()):
        digest.update(_canonical([name, tensor.dtype, tensor.shape]).encode() + b"\n")
        digest.update(tensor.data)
    return digest.hexdigest()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
