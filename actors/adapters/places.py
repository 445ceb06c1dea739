"""Where the tensors of LoRA belong: what PEFT calls them, and which module of the base that is."""

from __future__ import annotations

import re
from typing import NamedTuple

from weft.actors.adapters.base import EMBEDDING, HEAD, MODULES, BaseShapes
from weft.actors.adapters.errors import BadAdapter, shown_name
from weft.actors.adapters.peft_config import AdapterConfig

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


class Place(NamedTuple):
    """Where a tensor belongs."""

    layer: int | None  # None: the embedding or the head
    name: str
    module: str  # its name in the base

    @property
    def key(self) -> str:
        """The module's name in the normalized file."""
        return self.name if self.layer is None else f"layers.{self.layer}.{self.name}"


def place_of(name: str, config: AdapterConfig, base: BaseShapes) -> tuple[Place, str]:
    """Return where a tensor belongs, and which of A, B, bias or magnitude it is there.

    Raises ``BadAdapter`` for what is no part of LoRA, or not one that the configuration speaks of.
    """
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
    return Place(layer, module, match["module"]), side
