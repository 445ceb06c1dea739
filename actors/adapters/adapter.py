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
from weft.actors.adapters.granules import Size
from weft.actors.adapters.peft_config import AdapterConfig
from weft.actors.adapters.safetensors import Tensor
from weft.actors.shards import Shard

# PEFT's names: "model." is missing if the adapter was trained without the language model's head,
# "default" was kept by old versions.
_TENSOR_NAME = re.compile(
    r"base_model\.model\.(?P<module>(?:model\.)?layers\.(?P<layer>0|[1-9][0-9]{0,8})"
    r"\.(?P<block>self_attn|mlp)\.(?P<name>[a-z]+_proj))"
    r"\.lora_(?P<side>A|B|magnitude_vector)(?:\.default)?(?P<kind>\.weight|\.bias)?"
)
_SIDES = {
    ("A", ".weight"): "A",
    ("B", ".weight"): "B",
    ("B", ".bias"): "bias",
    ("magnitude_vector", None): "magnitude",
    ("magnitude_vector", ".weight"): "magnitude",
}
# What messages call them.
_SAVED_AS = {
    "A": "lora_A",
    "B": "lora_B",
    "bias": "lora_B.bias",
    "magnitude": "lora_magnitude_vector",
}


class _Place(NamedTuple):
    """Where a tensor belongs."""

    layer: int
    name: str
    module: str  # its name in the base


class Adapter(NamedTuple):
    """A valid adapter.

    ``tensors`` maps layers.{i}.{q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj}.{A|B} to A
    [rank, inputs] and B [outputs, rank]; .bias [outputs] is B's, .magnitude [outputs] DoRA's.
    ``scales`` maps names without .A and .B to the factor of B A and of the bias. One with
    ``invocation_tokens`` acts from where a prompt has them last. The digest is sha256 over all of
    it, so equal adapters have one name wherever they come from.
    """

    digest: str
    rank: int  # the largest
    scales: dict[str, float]
    tensors: dict[str, Tensor]
    invocation_tokens: tuple[int, ...] = ()

    @property
    def is_additive(self) -> bool:
        """Whether it adds to what the base computes, and no more than that: not so DoRA."""
        return not any(name.endswith(".magnitude") for name in self.tensors)

    def file(self) -> list[bytes | memoryview]:
        """Return the parts of the file that runners read."""
        metadata = {"digest": self.digest, "scales": _canonical(self.scales)}
        return safetensors.serialize(self.tensors, metadata)

    def granules(self, base: BaseShapes, shards: Sequence[Shard]) -> int:
        """Return the granules of the layer that has most, on the device that has most of it."""
        sizes = ((*_layer_and_module(name), self._size(name)) for name in self.scales)
        return granules.most_of_any_layer(sizes, base, shards)

    def _size(self, name: str) -> Size:
        has_affine = any(f"{name}.{side}" in self.tensors for side in ("bias", "magnitude"))
        return Size(self.tensors[f"{name}.A"].shape[0], has_affine)


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
    invocation = config.alora_invocation_tokens
    return Adapter(_digest(scales, found, invocation), rank, scales, found, invocation)


def _layer_and_module(name: str) -> tuple[int, str]:
    _, layer, module = name.split(".")
    return int(layer), module


def _place(name: str, config: AdapterConfig, base: BaseShapes) -> tuple[_Place, str]:
    tensor = f"tensor {shown_name(name)}"
    match = _TENSOR_NAME.fullmatch(name)
    side = match and _SIDES.get((match["side"], match["kind"]))
    if match is None or side is None or MODULES.get(match["name"]) != match["block"]:
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
    for field, given, own in (
        ("use_dora", config.use_dora, "magnitude"), ("lora_bias", config.lora_bias, "bias"),
    ):  # fmt: skip
        if side == own and not given:
            raise BadAdapter(
                f"{tensor}: {field} is not set; mend adapter_config.json, or remove the tensor"
            )
    return _Place(layer, match["name"], match["module"]), side


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
    """Check what one module has and return its rank."""
    needed = {
        "A": True, "B": True, "bias": config.lora_bias, "magnitude": config.use_dora,
    }  # fmt: skip
    for side, is_needed in needed.items():
        if is_needed and side not in pair:
            raise BadAdapter(
                f"{place.module}: {_SAVED_AS[side]} is missing; save the adapter again"
            )
    rank = config.rank(place.module)
    if rank > rank_max:
        raise BadAdapter(
            f"r: rank {rank} of {place.module} is more than max_lora_rank ({rank_max}); raise "
            f"max_lora_rank, or train with a lower rank"
        )
    shape = base.shape(place.name)
    expected_shapes = {
        "A": (rank, shape.inputs), "B": (shape.outputs, rank),
        "bias": (shape.outputs,), "magnitude": (shape.outputs,),
    }  # fmt: skip
    for side, tensor in pair.items():
        expected = expected_shapes[side]
        if tensor.shape != expected:
            raise BadAdapter(
                f"{place.module}.{_SAVED_AS[side]}: shape {list(tensor.shape)}, expected "
                f"{list(expected)} for rank {rank} and this base; was the adapter trained for "
                f"another one?"
            )
        if not tensor.is_finite:
            raise BadAdapter(
                f"{place.module}.{_SAVED_AS[side]}: a value is infinite or NaN; train the adapter "
                f"again"
            )
    return rank


def _digest(
    scales: dict[str, float], tensors: dict[str, Tensor], invocation: tuple[int, ...]
) -> str:
    digest = hashlib.sha256(b"weft adapter 1\n")
    digest.update(_canonical(scales).encode() + b"\n")
    if invocation:
        digest.update(_canonical(["invocation", *invocation]).encode() + b"\n")
    for name, tensor in sorted(tensors.items()):
        digest.update(_canonical([name, tensor.dtype, tensor.shape]).encode() + b"\n")
        digest.update(tensor.data)
    return digest.hexdigest()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
