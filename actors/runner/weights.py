"""Reads a checkpoint's tensors: one safetensors file or the files that an index names.

One rank of a tensor-parallel group reads its own part of each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weft.actors.runner.architecture import DTYPES, Architecture, UnsupportedModel
from weft.actors.shards import Shard, Span

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class _Saved(Protocol):
    """A tensor in a file, of which any part can be read."""

    def get_shape(self) -> list[int]: ...

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor: ...


class _Index(msgspec.Struct):
    weight_map: dict[str, str]  # tensor -> file


def load(
    folder: Path,
    architecture: Architecture,
    progress: Callable[[float], None],
    shard: Shard | None = None,
) -> dict[str, Tensor]:
    """Return the tensors that the architecture has, by their names without "model.".

    ``architecture`` is the whole model's; of each tensor, the part of ``shard`` is read, None: all
    of it. A bias that is added to a sum over the ranks is rank 0's alone. ``progress`` hears the
    share of tensors read. Raises ``UnsupportedModel`` for what is missing, unknown or of another
    shape.
    """
    expected = _expected_shapes(architecture)
    tensors: dict[str, Tensor] = {}
    seen: set[str] = set()
    for file in _files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    short = name.removeprefix("model.")
                    if short == "lm_head.weight" and architecture.tied:
                        continue
                    if short.endswith("rotary_emb.inv_freq"):
                        continue  # saved by old versions; follows from the configuration
                    if short not in expected:
                        raise UnsupportedModel(f"{file.name}: unexpected tensor {name!r}")
                    seen.add(short)
                    saved = opened.get_slice(name)
                    _check_shape(name, saved.get_shape(), expected[short])
                    part = _part(short, saved, shard)
                    if part is not None:
                        tensors[short] = _of_known_type(name, part)
                    progress(len(seen) / len(expected))
        except (OSError, SafetensorError) as error:
            raise UnsupportedModel(
                f"{file}: {error}; the checkpoint is not whole, download it again"
            ) from None
    missing = sorted(expected.keys() - seen)
    if missing:
        raise UnsupportedModel(
            f"{folder}: {len(missing)} tensors are missing, first {missing[0]}; "
            "config.json and the weights must be of the same model"
        )
    return tensors


def _files(folder: Path) -> list[Path]:
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise UnsupportedModel(
            f"{folder}: neither model.safetensors nor model.safetensors.index.json; "
            "convert other formats to safetensors first"
        )
    try:
        names = sorted(
            set(msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values())
        )
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnsupportedModel(
            f"{index}: {error}; the checkpoint is not whole, download it again"
        ) from None
    if any(Path(name).name != name for name in names):
        raise UnsupportedModel(f"{index}: shards must lie beside the index")
    return [folder / name for name in names]


def _part(short: str, saved: _Saved, shard: Shard | None) -> Tensor | None:
    """Read what a rank has of a tensor. None: it has nothing of it."""
    *_, module, kind = short.split(".")
    rows = columns = None
    if shard is not None:
        is_of_tokens = module in ("embed_tokens", "lm_head")
        rows = shard.tokens if is_of_tokens else shard.outputs(module)
        columns = shard.inputs(module)
        if kind == "bias" and columns is not None and shard.rank > 0:
            return None
    return saved[(_slice(rows), _slice(columns))[: len(saved.get_shape())]]


def _slice(span: Span | None) -> slice:
    return slice(None) if span is None else slice(*span)


def _check_shape(name: str, found: list[int], shape: tuple[int, ...]) -> None:
    if tuple(found) != shape:
        raise UnsupportedModel(f"{name}: shape {tuple(found)}, the configuration says {shape}")


def _of_known_type(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in DTYPES:
        raise UnsupportedModel(
            f"{name}: type {tensor.dtype}; convert to float32, bfloat16 or float16 first"
        )
    return tensor


def _expected_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    hidden = architecture.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (architecture.vocabulary, hidden),
        "norm.weight": (hidden,),
    }
    if not architecture.tied:
        shapes["lm_head.weight"] = (architecture.vocabulary, hidden)
    biased = {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj"), architecture.qkv_bias),
        "o_proj": architecture.o_bias,
        **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), architecture.mlp_bias),
    }
    for i in range(architecture.layers):
        layer = f"layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        if architecture.qk_norm:
            shapes[f"{layer}.self_attn.q_norm.weight"] = (architecture.head_dim,)
            shapes[f"{layer}.self_attn.k_norm.weight"] = (architecture.head_dim,)
        for module in MODULES:
            shape = architecture.module_shape(module)
            shapes[f"{layer}.{parent(module)}.{module}.weight"] = shape
            if biased[module]:
                shapes[f"{layer}.{parent(module)}.{module}.bias"] = shape[:1]
    return shapes


def parent(module: str) -> str:
    """Return the block that a linear module belongs to."""
    return "self_attn" if module in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
