"""adapter_config.json, field by field: what weft computes, and what it refuses by name.

The fields are those of PEFT's LoraConfig. A field that weft does not know may change the result, so
it is refused too, unless it is empty.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from weft.actors.adapters import patterns, strict_json
from weft.actors.adapters.base import EMBEDDING, HEAD
from weft.actors.adapters.errors import BadAdapter, need, shown, shown_name
from weft.actors.adapters.loader import INVOCATION_TOKENS_MAX
from weft.actors.adapters.patterns import PATTERNS_MAX, PATTERNS_NOT_NAMES_MAX

CONFIG_BYTES_MAX = 4 * 1024 * 1024

# Initializations that leave the base's weights alone. Others (pissa, olora, loftq, corda, lora_ga)
# train against a changed base, on which the adapter alone is wrong.
_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")

# Fields that say nothing about the result, or that are read elsewhere in this file.
_READ_OR_HARMLESS = frozenset(
    {
        "peft_type", "task_type", "bias", "init_lora_weights",
        "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
        "use_dora", "lora_bias", "alora_invocation_tokens",
        "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
        "exclude_modules", "layers_to_transform", "layers_pattern",
        "lora_dropout", "eva_config", "megatron_core", "qalora_group_size", "runtime_config",
        "modules_to_save", "trainable_token_indices", "ensure_weight_tying",
    }
)  # fmt: skip

# Fields of several types, in which any empty value says as little as null.
_MAY_BE_EMPTY = frozenset(
    {
        "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
        "trainable_token_indices", "alora_invocation_tokens",
    }
)  # fmt: skip

# What to do about a field that asks for more than weft computes.
_ADVICE = {
    "fan_in_fan_out": "it is for Conv1D layers, which the base does not have",
}

# What PEFT takes for a layer's number where no pattern is given: the first with two names before.
_ANY_LAYER = r".*?\.[^.]*\.(?P<idx>\d+)\."


class AdapterConfig(msgspec.Struct, frozen=True):
    """What an adapter's configuration says about the result."""

    r: int
    lora_alpha: float
    target_modules: str | frozenset[str]
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    exclude_modules: str | frozenset[str] = frozenset()
    layers_to_transform: int | frozenset[int] | None = None
    layers_pattern: str | tuple[str, ...] = ()
    alora_invocation_tokens: tuple[int, ...] = ()
    modules_to_save: frozenset[str] = frozenset()
    trainable_token_indices: tuple[int, ...] | dict[str, tuple[int, ...]] = ()
    ensure_weight_tying: bool = False  # says nothing of a base that ties nothing

    def rank(self, module: str) -> int:
        """Return the rank of a module, named as in the base: model.layers.0.self_attn.q_proj."""
        return patterns.look_up("rank_pattern", self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """Return what a module's B A is multiplied by."""
        alpha = patterns.look_up("alpha_pattern", self.alpha_pattern, module, self.lora_alpha)
        rank = self.rank(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, module: str) -> bool:
        """Whether an adapter of this configuration updates a module by LoRA (as PEFT decides)."""
        return any(map(self._targets, self._tied(module)))

    def saves(self, module: str) -> bool:
        """Whether it has a module of its own (as PEFT decides)."""
        names = tuple(self.modules_to_save)
        return any(each.endswith(names) for each in self._tied(module))

    def token_indices(self, module: str) -> tuple[int, ...]:
        """Return the tokens whose rows of an embedding or a head are its own."""
        indices = self.trainable_token_indices
        if isinstance(indices, tuple):
            return indices if module == EMBEDDING else ()
        return indices.get(module, ())

    def _tied(self, module: str) -> tuple[str, ...]:
        """Return a module, or both that it is one of if what is tied shall stay so."""
        both = (HEAD, f"model.{EMBEDDING}")
        return both if self.ensure_weight_tying and module in both else (module,)

    def _targets(self, module: str) -> bool:
        if self._covers("exclude_modules", self.exclude_modules, module):
            return False
        if self.target_modules == "all-linear":
            return module.rpartition(".")[2] not in (EMBEDDING, HEAD)
        if not self._covers("target_modules", self.target_modules, module):
            return False
        # A module that is named in full is meant whatever its layer is.
        if isinstance(self.target_modules, str) or module in self.target_modules:
            return True
        match self.layers_to_transform:
            case None:
                return True
            case int(layer):
                return self._layer(module) == layer
            case layers:
                return not layers or self._layer(module) in layers

    def layer_expressions(self) -> list[str]:
        """Return what is tried in turn to find a module's layer."""
        names = self.layers_pattern
        named = (names,) if isinstance(names, str) else names
        return [rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\." for name in named] or [_ANY_LAYER]

    def _layer(self, module: str) -> int | None:
        for expression in self.layer_expressions():
            match = patterns.match_start("layers_pattern", expression, module)
            if match is not None:
                return None if match["idx"] is None else int(match["idx"])
        return None

    @staticmethod
    def _covers(field: str, modules: str | frozenset[str], module: str) -> bool:
        """Whether an expression, or one of the names or its end, is a module's name."""
        if isinstance(modules, str):
            return modules != "" and patterns.matches(field, modules, module)
        words = module.split(".")
        return any(".".join(words[i:]) in modules for i in range(len(words)))


def parse(file: bytes) -> AdapterConfig:
    """Return a checked configuration. Raises ``BadAdapter`` for the first field at fault."""
    try:
        fields = strict_json.loads(file)
    except (ValueError, RecursionError) as error:
        raise BadAdapter(f"it is no JSON ({error}); save the adapter again") from None
    if not isinstance(fields, dict):
        raise BadAdapter("it is no JSON object; save the adapter again")
    _refuse_unsupported(fields)
    try:
        # None is what PEFT writes for a field that was not set.
        given = {
            name: value
            for name, value in fields.items()
            if value is not None and not (name in _MAY_BE_EMPTY and _is_empty(value))
        }
        config = msgspec.convert(given, AdapterConfig)
    except msgspec.ValidationError as error:
        raise BadAdapter(f"{error}; save the adapter again") from None
    for name, rank in {"r": config.r, **config.rank_pattern}.items():
        need(0 < rank < 2**31, name, f"{shown(rank)} is no rank; it must be positive")
    for name, alpha in {"lora_alpha": config.lora_alpha, **config.alpha_pattern}.items():
        need(math.isfinite(alpha), name, f"{alpha} is not finite; train the adapter again")
    for name, modules in (
        ("target_modules", config.target_modules), ("exclude_modules", config.exclude_modules),
    ):  # fmt: skip
        if isinstance(modules, str):
            patterns.check(name, modules)
    _check_layers(config)
    need(
        not (config.use_dora and config.lora_bias),
        "lora_bias",
        "PEFT does not take it together with use_dora; train the adapter without it",
    )
    _check_own(config)
    _check_invocation(config)
    patterns.check_endings("rank_pattern", config.rank_pattern)
    patterns.check_endings("alpha_pattern", config.alpha_pattern)
    return config


def _refuse_unsupported(fields: dict[str, Any]) -> None:
    kind = fields.get("peft_type")
    need(kind == "LORA", "peft_type", f"{shown(kind)} is not supported; it must be LORA")
    task = fields.get("task_type")
    need(
        task in ("CAUSAL_LM", None),
        "task_type",
        f"{shown(task)} is not supported; it must be CAUSAL_LM or null",
    )
    bias = fields.get("bias", "none")
    need(bias == "none", "bias", f"{shown(bias)} is not supported; train it with bias none")
    initialization = fields.get("init_lora_weights", True)
    need(
        initialization in _INITIALIZATIONS,
        "init_lora_weights",
        f"{shown(initialization)} is not supported, since it may change the base's weights; "
        f"convert the adapter to plain LoRA when saving it "
        f"(path_initial_model_for_weight_conversion)",
    )
    for name, value in fields.items():
        if name not in _READ_OR_HARMLESS and value:
            advice = _ADVICE.get(name, "train the adapter without it")
            raise BadAdapter(f"{shown_name(name)}: {shown(value)} is not supported; {advice}")


def _is_empty(value: object) -> bool:
    """Whether a field says nothing; 0 may be a layer, and a list has a meaning of its own."""
    return value is False or value in ({}, "")


def _check_layers(config: AdapterConfig) -> None:
    layers = config.layers_to_transform
    need(
        layers is None or layers == frozenset() or not isinstance(config.target_modules, str),
        "layers_to_transform",
        "PEFT takes it beside a list of target_modules only; list the modules by name",
    )
    need(
        layers is not None or not config.layers_pattern,
        "layers_pattern",
        "PEFT takes it beside layers_to_transform only; leave it out",
    )
    expressions = config.layer_expressions()
    need(
        len(expressions) <= PATTERNS_NOT_NAMES_MAX,
        "layers_pattern",
        f"{len(expressions)} entries; at most {PATTERNS_NOT_NAMES_MAX} are taken",
    )
    for expression in expressions:
        patterns.check("layers_pattern", expression)


def _check_invocation(config: AdapterConfig) -> None:
    tokens = config.alora_invocation_tokens
    need(
        len(tokens) <= INVOCATION_TOKENS_MAX,
        "alora_invocation_tokens",
        f"{len(tokens)} tokens; at most {INVOCATION_TOKENS_MAX} are taken; invoke it by fewer",
    )
    for token in tokens:
        need(
            0 <= token < 2**31,
            "alora_invocation_tokens",
            f"{shown(token)} is no token id; save the adapter again",
        )
    for name, given in (
        ("use_dora", config.use_dora), ("modules_to_save", config.modules_to_save),
        ("trainable_token_indices", config.trainable_token_indices),
    ):  # fmt: skip
        need(
            not (tokens and given),
            "alora_invocation_tokens",
            f"it is not supported together with {name}, which does not wait for an invocation; "
            f"train the adapter without one of them",
        )


def _check_own(config: AdapterConfig) -> None:
    count = len(config.modules_to_save)
    need(
        count <= PATTERNS_MAX,
        "modules_to_save",
        f"{count} entries; at most {PATTERNS_MAX} are taken",
    )
    indices = config.trainable_token_indices
    for name in indices if isinstance(indices, dict) else ():
        need(
            name in (EMBEDDING, HEAD),
            "trainable_token_indices",
            f"{shown(name)} is not supported; name {EMBEDDING} or {HEAD}",
        )
