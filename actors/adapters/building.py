"""Makes an adapter of a configuration and tensors, each of them checked against the base."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from weft.actors.adapters.adapter import Adapter, digest_of
from weft.actors.adapters.base import EMBEDDING, HEAD, BaseShapes, LinearShape
from weft.actors.adapters.errors import BadAdapter, shown_name
from weft.actors.adapters.peft_config import AdapterConfig
from weft.actors.adapters.places import Place, place_of
from weft.actors.adapters.safetensors import Tensor, floats
from weft.actors.adapters.whole import Found, Rows

# What messages call them.
_SAVED_AS = {
    "A": "lora_A",
    "B": "lora_B",
    "bias": "lora_B.bias",
    "magnitude": "lora_magnitude_vector",
}


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
    sides: dict[Place, dict[str, Tensor]] = {}
    for name, tensor in sorted(tensors.items()):
        if found.take(name, tensor):
            continue
        place, side = place_of(name, config, base)
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
    made = Adapter(digest_of(scales, kept, invocation), rank, added, scales, kept, invocation)
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


def _check_spelling(places: list[Place]) -> None:
    named: dict[str, str] = {}
    for place in places:
        other = named.setdefault(place.key, place.module)
        if other != place.module:
            raise BadAdapter(
                f"tensors of {other} and {place.module}: the same module twice; keep one"
            )


def _check_pair(
    place: Place, pair: dict[str, Tensor], config: AdapterConfig, shape: LinearShape, rank_max: int
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
