"""An adapter's weights, checked against the base and brought into one form, named by content."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from weft.actors.adapters import granules, safetensors
from weft.actors.adapters.base import EMBEDDING, HEAD, MODULES, BaseShapes, LinearShape
from weft.actors.adapters.errors import BadAdapter, shown_name
from weft.actors.adapters.granules import Size, Spread
from weft.actors.adapters.peft_config import AdapterConfig
from weft.actors.adapters.safetensors import Tensor, floats
from weft.actors.adapters.whole import Found, Rows
from weft.actors.shards import Shard

# What digests are made of. Another way of making them has another name.
DIGEST_FORMAT = "weft adapter 1"

# PEFT's names: "model." is missing if the adapter was trained without the language model's head,
# "default" was kept by old versions.
_TENSOR_NAME = re.compile(
    r"base_model\.model\.(?P<module>(?:model\.)?layers\.(?P<layer>0|[1-9][0-9]{0,8})"
    r"\.(?P<block>self_attn|mlp)\.(?P<name>[a-z]+_proj)|lm_head|(?:model\.)?embed_tokens)"
    r"\.lora_(?P<side>A|B|embedding_A|embedding_B|magnitude_vector)(?:\.default)?"
    r"(?P<kind>\.weight|\.bias)?"
)
_SIDES: dict[tuple[str, str | None], str] = {
    ("A", ".weight"): "A",
    ("B", ".weight"): "B",
    ("B", ".bias"): "bias",
    ("magnitude_vector", None): "magnitude",
    ("magnitude_vector", ".weight"): "magnitude",
}
_SIDES_OF_EMBEDDING: dict[tuple[str, str | None], str] = {
    ("embedding_A", None): "A",
    ("embedding_B", None): "B",
}
# Names in the normalized file that are part of an update, and of nothing else.
_OF_UPDATES = (".A", ".B", ".bias")
# What messages call them.
_SAVED_AS = {
    "A": "lora_A",
    "B": "lora_B",
    "bias": "lora_B.bias",
    "magnitude": "lora_magnitude_vector",
}


class _Place(NamedTuple):
    """Where a tensor belongs."""

    layer: int | None  # None: the embedding or the head
    name: str
    module: str  # its name in the base

    @property
    def key(self) -> str:
        """The module's name in the normalized file."""
        return self.name if self.layer is None else f"layers.{self.layer}.{self.name}"


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


def build(
    config: AdapterConfig,
    tensors: dict[str, Tensor],
    base: BaseShapes,
    *,
    rank_max: int,
    whole_bytes_max: int,
) -> Adapter:
    """Check every tensor and return the adapter. Raises ``BadAdapter`` for the first at fault.

    ``whole_bytes_max``: what it may have that is no update.
    """
    is_tied = config.ensure_weight_tying and base.tie_word_embeddings
    config = msgspec.structs.replace(config, ensure_weight_tying=is_tied)
    found = Found(config, base, bytes_max=whole_bytes_max)
    sides: dict[_Place, dict[str, Tensor]] = {}
    for name, tensor in sorted(tensors.items()):
        if found.take(name, tensor):
            continue
        place, side = _place(name, config, base)
        pair = sides.setdefault(place, {})
        if side in pair:
            raise BadAdapter(f"tensor {shown_name(name)}: the module has two; remove one")
        pair[side] = tensor
    if not sides:
        raise BadAdapter("there is no tensor of LoRA; train the adapter, or leave it out")
    _check_spelling(list(sides))
    whole = found.build()
    scales = {}
    kept = dict(whole.norms)
    rank = 0
    for place, pair in sides.items():
        shape = base.shape(place.name)
        if place.name == EMBEDDING:
            shape = shape._replace(inputs=whole.tokens[EMBEDDING])
        elif place.name == HEAD:
            shape = shape._replace(outputs=whole.tokens[HEAD])
        rank = max(rank, _check_pair(place, pair, config, shape, rank_max))
        scales[place.key] = config.scale(place.module)
        kept.update({f"{place.key}.{side}": tensor for side, tensor in pair.items()})
    if config.ensure_weight_tying:
        _check_tied(kept)
    for module, rows in whole.rows.items():
        kept |= _settled(module, rows, kept, scales.get(module))
    kept |= _of_the_base(kept, base.vocab_size)
    added = whole.tokens[EMBEDDING] - base.vocab_size
    invocation = config.alora_invocation_tokens
    made = Adapter(_digest(scales, kept, invocation), rank, added, scales, kept, invocation)
    if invocation and (f"{EMBEDDING}.A" in kept or not made.is_additive):
        raise BadAdapter(
            f"alora_invocation_tokens: what changes {EMBEDDING}, or replaces what the base has, "
            f"does not wait for an invocation; train the adapter without one of them"
        )
    return made


def _check_tied(found: dict[str, Tensor]) -> None:
    """Check that updates of what is tied are the same: the head's B is the embedding's A."""
    pairs = ((f"{EMBEDDING}.A", f"{HEAD}.B"), (f"{EMBEDDING}.B", f"{HEAD}.A"))
    for one, other in pairs:
        if one in found or other in found:
            if not (one in found and other in found):
                raise BadAdapter(
                    f"{EMBEDDING} and {HEAD}: ensure_weight_tying is set, and LoRA of one of them "
                    f"is missing; save the adapter again"
                )
            if not np.array_equal(_floats(found[one]), _floats(found[other]).T):
                raise BadAdapter(
                    f"{EMBEDDING} and {HEAD}: ensure_weight_tying is set, and their LoRA differs; "
                    f"save the adapter again"
                )


def _settled(
    module: str, rows: Rows, found: dict[str, Tensor], scale: float | None
) -> dict[str, Tensor]:
    """Return own rows of an embedding or a head with the update of just these in them."""
    values, dtype = rows.values, rows.dtype
    if scale is not None:
        a, b = (_floats(found[f"{module}.{side}"]) for side in "AB")
        update = a[:, rows.ids].T @ b.T if module == EMBEDDING else b[rows.ids] @ a
        values, dtype = floats(values, dtype) + np.float32(scale) * update, "F32"
    settled = Tensor.of(values, dtype)
    if not settled.is_finite:
        raise BadAdapter(f"{module}: LoRA makes a value infinite or NaN; train the adapter again")
    return {f"{module}.ids": Tensor.of(rows.ids, "I32"), f"{module}.rows": settled}


def _of_the_base(found: dict[str, Tensor], tokens: int) -> dict[str, Tensor]:
    """Return updates of an embedding and a head as far as they are of the base's tokens."""
    cut = {}
    for name, columns in ((f"{EMBEDDING}.A", True), (f"{HEAD}.B", False)):
        if name in found:
            whole = found[name]
            own = whole.array[:, :tokens] if columns else whole.array[:tokens]
            cut[name] = Tensor.of(own, whole.dtype)
    return cut


def _floats(tensor: Tensor) -> NDArray[np.float32]:
    return floats(tensor.array, tensor.dtype)


def _place(name: str, config: AdapterConfig, base: BaseShapes) -> tuple[_Place, str]:
    tensor = f"tensor {shown_name(name)}"
    match = _TENSOR_NAME.fullmatch(name)
    module = match and (match["name"] or match["module"].removeprefix("model."))
    sides = _SIDES_OF_EMBEDDING if module == EMBEDDING else _SIDES
    side = match and sides.get((match["side"], match["kind"]))
    for field, is_set in (("use_dora", config.use_dora), ("lora_bias", config.lora_bias)):
        if module in (EMBEDDING, HEAD) and is_set:
            raise BadAdapter(
                f"{field}: not supported on {module}; train the adapter without it, or leave "
                f"{module} out of target_modules"
            )
    if not (match and module and side) or MODULES.get(module) != match["block"]:
        raise BadAdapter(
            f"{tensor}: not supported; an adapter may change {', '.join(MODULES)} of the layers "
            f"and {HEAD}, as lora_A.weight and lora_B.weight, {EMBEDDING}, as lora_embedding_A and "
            f"lora_embedding_B, and have norms, {EMBEDDING} and {HEAD} of its own"
        )
    layer = int(match["layer"]) if match["block"] else None
    if layer is not None and layer >= base.num_hidden_layers:
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
    return _Place(layer, module, match["module"]), side


def _check_spelling(places: list[_Place]) -> None:
    named: dict[str, str] = {}
    for place in places:
        other = named.setdefault(place.key, place.module)
        if other != place.module:
            raise BadAdapter(
                f"tensors of {other} and {place.module}: the same module twice; keep one"
            )


def _check_pair(
    place: _Place, pair: dict[str, Tensor], config: AdapterConfig, shape: LinearShape, rank_max: int
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
