"""Reads a LoRA adapter as PEFT saves it, and refuses by name whatever cannot be served exactly."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from weft.actors.adapters.tensor_file import BadTensorFile, RawTensor, opened

Result = TypeVar("Result")
Value = TypeVar("Value", int, float)

CONFIG_BYTES_MAX = 1024 * 1024

MODULES = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}

_TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?:model\.)?layers\.(?P<layer>\d{1,5})\.(?P<parent>self_attn|mlp)\."
    r"(?P<module>\w+)\.lora_(?P<matrix>[AB])(?:\.default)?\.weight"
)

# Options that are read, or whose effect is all in the two matrices and in which modules have them.
_UNDERSTOOD = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "ensure_weight_tying",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "target_modules",
        "use_rslora",
    }
)

# Options that must have a certain value; any other that is set to something is refused by name.
_NEUTRAL: dict[str, tuple[Any, ...]] = {"bias": ("none",), "task_type": ("CAUSAL_LM", None)}
_NOTHING: tuple[Any, ...] = (None, False, [], {})

# Ways to initialise that also change the base's weights, which weft shares between adapters.
_INITIALISATIONS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class RefusedAdapter(Exception):
    """The adapter cannot be served; the message names the field or tensor, and what to do."""


class BaseShapes(NamedTuple):
    """What the base model says of the modules that an adapter may target."""

    layers: int
    modules: dict[str, tuple[int, int]]  # module -> (out, in)


class PeftConfig(msgspec.Struct, frozen=True):
    """The fields of adapter_config.json that decide what the matrices mean."""

    peft_type: str
    r: int
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}


class Adapter(NamedTuple):
    """A validated adapter. Tensors are valid while the folder's file is open."""

    digest: str  # sha256 of the scales and the tensors, hex
    rank: int  # the largest of its modules'
    tensors: dict[str, RawTensor]  # "layers.{i}.{module}.A" [rank, in], ".B" [out, rank]
    scales: dict[str, float]  # "layers.{i}.{module}" -> factor of B A x


def read_base(folder: Path) -> BaseShapes:
    """Return the shapes that config.json implies."""
    config = json.loads((folder / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or hidden // heads
    return BaseShapes(
        config["num_hidden_layers"],
        {
            "q_proj": (heads * size, hidden),
            "k_proj": (kv_heads * size, hidden),
            "v_proj": (kv_heads * size, hidden),
            "o_proj": (hidden, heads * size),
            "gate_proj": (inner, hidden),
            "up_proj": (inner, hidden),
            "down_proj": (hidden, inner),
        },
    )


def with_adapter(
    folder: Path, base: BaseShapes, rank_max: int, use: Callable[[Adapter], Result]
) -> Result:
    """Read and check an adapter, and return what ``use`` makes of it.

    Raises ``RefusedAdapter``. The tensors that ``use`` sees are views of the file.
    """
    try:
        config = _config(folder)
        path = _weights_path(folder)
        with opened(path) as raw:
            adapter = _checked(raw, config, base, rank_max)
            result = use(adapter)
            adapter.tensors.clear()
        return result
    except BadTensorFile as error:
        raise RefusedAdapter(f"adapter_model.safetensors: {error}") from None
    except OSError as error:
        raise RefusedAdapter(f"{error.strerror}: {error.filename}") from None


def _config(folder: Path) -> PeftConfig:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise RefusedAdapter("adapter_config.json is missing: save the adapter with PEFT")
    if path.stat().st_size > CONFIG_BYTES_MAX:
        raise RefusedAdapter("adapter_config.json is larger than a megabyte")
    try:
        raw = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        _refuse_options(raw)
        config = msgspec.convert(raw, PeftConfig)
    except RefusedAdapter:
        raise
    # Hostile JSON raises more than the decoder's own errors (RecursionError, UnicodeDecodeError).
    except Exception as error:  # noqa: BLE001
        raise RefusedAdapter(f"adapter_config.json: {error}") from None
    if config.r < 1:
        raise RefusedAdapter(f"r is {config.r}: it must be positive")
    return config


def _refuse_options(raw: dict[str, Any]) -> None:
    if raw.get("peft_type") != "LORA":
        raise RefusedAdapter(f"peft_type {raw.get('peft_type')!r}: only 'LORA' is served")
    for name, value in raw.items():
        if name not in _UNDERSTOOD and value not in _NEUTRAL.get(name, _NOTHING):
            raise RefusedAdapter(f"{name} is {value!r}, which is not supported: train without it")
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_INITIALISATIONS_THAT_CHANGE_THE_BASE):
        raise RefusedAdapter(
            f"init_lora_weights is {start!r}, which also changes the base's weights: convert it to "
            "plain LoRA (PEFT: save_pretrained with path_initial_model_for_weight_conversion)"
        )


def _weights_path(folder: Path) -> Path:
    path = folder / "adapter_model.safetensors"
    if path.is_file():
        return path
    if (folder / "adapter_model.bin").exists():
        raise RefusedAdapter(
            "adapter_model.bin is a pickle, which can run code: save it as safetensors"
        )
    raise RefusedAdapter("adapter_model.safetensors is missing")


def _checked(
    raw: dict[str, RawTensor], config: PeftConfig, base: BaseShapes, rank_max: int
) -> Adapter:
    tensors: dict[str, RawTensor] = {}
    for name, tensor in raw.items():
        match = _TENSOR.fullmatch(name)
        if match is None or MODULES.get(match["module"]) != match["parent"]:
            raise RefusedAdapter(
                f"tensor {name!r}: LoRA on {', '.join(MODULES)} of the decoder layers is served"
            )
        if int(match["layer"]) >= base.layers:
            raise RefusedAdapter(f"tensor {name!r}: the base has {base.layers} layers")
        short = f"layers.{int(match['layer'])}.{match['module']}.{match['matrix']}"
        if short in tensors:
            raise RefusedAdapter(f"tensor {name!r}: there twice")
        if not tensor.is_finite:
            raise RefusedAdapter(f"tensor {name!r}: some value is not a finite number")
        tensors[short] = tensor
    if not tensors:
        raise RefusedAdapter("adapter_model.safetensors holds no LoRA matrices")
    scales, ranks = _scales(tensors, config, base, rank_max)
    return Adapter(_digest(tensors, scales), max(ranks), tensors, scales)


def _scales(
    tensors: dict[str, RawTensor], config: PeftConfig, base: BaseShapes, rank_max: int
) -> tuple[dict[str, float], list[int]]:
    scales, ranks = {}, []
    for name in sorted({short[:-2] for short in tensors}):
        a, b = tensors.get(f"{name}.A"), tensors.get(f"{name}.B")
        if a is None or b is None:
            raise RefusedAdapter(f"{name}: lora_{'A' if a is None else 'B'} is missing")
        out, inner = base.modules[name.rsplit(".", 1)[1]]
        rank = _matching(config.rank_pattern, name, config.r)
        if a.shape != (rank, inner) or b.shape != (out, rank):
            raise RefusedAdapter(
                f"{name}: lora_A is {list(a.shape)} and lora_B {list(b.shape)}; the base and the "
                f"rank in adapter_config.json need {[rank, inner]} and {[out, rank]}"
            )
        if rank > rank_max:
            raise RefusedAdapter(f"{name}: rank {rank}; raise max_lora_rank ({rank_max})")
        alpha = _matching(config.alpha_pattern, name, config.lora_alpha)
        scales[name] = alpha / (rank**0.5 if config.use_rslora else rank)
        ranks.append(rank)
    return scales, ranks


def _matching(pattern: dict[str, Value], name: str, default: Value) -> Value:
    """Look a module up in a PEFT pattern: keys are regular expressions for the end of its name."""
    parent = MODULES[name.rsplit(".", 1)[1]]
    layer, module = name.rsplit(".", 1)
    full = f"model.{layer}.{parent}.{module}"
    for key, value in pattern.items():
        try:
            if re.match(rf"(.*\.)?({key})$", full):
                return value
        except re.error:
            raise RefusedAdapter(f"{key!r} in a pattern is no regular expression") from None
    return default


def _digest(tensors: dict[str, RawTensor], scales: dict[str, float]) -> str:
    """Hash what the adapter computes; neither names nor where it lies are part of it."""
    digest = hashlib.sha256(json.dumps(scales, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.data)
    return digest.hexdigest()
