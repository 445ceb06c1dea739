"""What an adapter has of its own beside updates: norms, and rows of the embedding and of the head.

PEFT saves whole modules (``modules_to_save``), rows of some tokens (``trainable_token_indices``),
and copies of the base's own matrices, which may have been resized, where an embedding is adapted or
the vocabulary has grown. All matrices come to the same here: the rows that are not the base's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from weft.actors.adapters import base_rows
from weft.actors.adapters.base import (
    ADDED_TOKENS_MAX,
    EMBEDDING,
    HEAD,
    MODULES,
    BaseShapes,
)
from weft.actors.adapters.base_rows import BaseUnreadable
from weft.actors.adapters.errors import BadAdapter, shown, shown_name
from weft.actors.adapters.peft_config import AdapterConfig
from weft.actors.adapters.safetensors import Tensor, floats

MATRICES = (EMBEDDING, HEAD)

_TENSOR_NAME = re.compile(
    r"base_model\.model\.(?P<module>lm_head|(?:model\.)?(?:embed_tokens|norm|layers\.[0-9]{1,9}\."
    r"(?:input_layernorm|post_attention_layernorm|self_attn\.q_norm|self_attn\.k_norm)))"
    r"\.(?P<kind>weight|base_layer\.weight|original_module\.weight|modules_to_save\.weight|"
    r"token_adapter\.base_layer\.weight|token_adapter\.trainable_tokens_delta)"
)
_DELTA = "token_adapter.trainable_tokens_delta"


class _Role(NamedTuple):
    """What an adapter does to a matrix, and which tensors of it PEFT saves then."""

    beside: str  # the base's own, as it was when the adapter was trained
    own: tuple[str, ...] = ()  # the adapter's, of which the first must be there


_ROLES = {
    None: _Role("weight"),
    "target_modules": _Role("base_layer.weight"),
    "modules_to_save": _Role("original_module.weight", ("weight", "modules_to_save.weight")),
    "trainable_token_indices": _Role("token_adapter.base_layer.weight", (_DELTA,)),
}

_MIB = 1024 * 1024


class Rows(NamedTuple):
    """Rows of an embedding or a head that take the place of the base's."""

    ids: NDArray[np.int64]  # ascending; from the base's vocabulary on there is none missing
    values: NDArray[np.generic]  # [ids, hidden], as ``Tensor.array`` has them
    dtype: str

    def tokens(self, base: BaseShapes) -> int:
        """Return how many rows the whole matrix has."""
        return max(base.vocab_size, int(self.ids[-1]) + 1 if len(self.ids) else 0)


class Whole(NamedTuple):
    """What an adapter has of its own."""

    norms: dict[str, Tensor]  # by name without "model."
    rows: dict[str, Rows]  # of EMBEDDING and HEAD, if any
    tokens: dict[str, int]  # of EMBEDDING and HEAD, with those that were added to the base's


class Found:
    """Collects an adapter's tensors of this kind."""

    def __init__(self, config: AdapterConfig, base: BaseShapes, *, bytes_max: int) -> None:
        """Raises ``BadAdapter`` if modules are to be whole that cannot be."""
        self._config = config
        self._base = base
        self._bytes_max = bytes_max
        self._saved: dict[str, dict[str, Tensor]] = {}  # by module without "model.", and by kind
        self._spelled: dict[str, str] = {}  # as they are named in the file
        for name in sorted(config.modules_to_save):
            others = [other for other in _others(base) if other.endswith(name)]
            if others:
                raise BadAdapter(
                    f"modules_to_save: {shown(name)} means {others[0] or 'everything'}; norms, "
                    f"embed_tokens and lm_head may be whole; train the others with LoRA"
                )

    def take(self, name: str, tensor: Tensor) -> bool:
        """Keep a tensor for ``build``. Returns whether it is of this kind."""
        match = _TENSOR_NAME.fullmatch(name)
        if match is None:
            return False
        short = match["module"].removeprefix("model.")
        if self._spelled.setdefault(short, match["module"]) != match["module"]:
            raise BadAdapter(f"tensor {shown_name(name)}: the module has two; remove one")
        self._saved.setdefault(short, {})[match["kind"]] = tensor
        return True

    def build(self) -> Whole:
        """Check everything, and return it. Raises ``BadAdapter``."""
        self._check_names()
        self._check_size()
        for module, kinds in self._saved.items():
            for kind, tensor in kinds.items():
                if not tensor.is_finite:
                    raise BadAdapter(
                        f"{module}.{kind}: a value is infinite or NaN; train the adapter again"
                    )
        norms = dict(self._norms())
        try:
            rows = self._rows()
        except BaseUnreadable as error:
            raise BadAdapter(f"the base's weights cannot be compared with it: {error}") from None
        tokens = {
            module: rows[module].tokens(self._base) if module in rows else self._base.vocab_size
            for module in MATRICES
        }
        if tokens[HEAD] > tokens[EMBEDDING]:
            raise BadAdapter(
                f"lm_head has {tokens[HEAD]} rows and embed_tokens {tokens[EMBEDDING]}: what is "
                f"sampled is fed again; save both, as PEFT does with save_embedding_layers=True"
            )
        return Whole(norms, rows, tokens)

    def _check_names(self) -> None:
        """Check that the base has all of these modules."""
        for module in sorted(self._saved.keys() - self._base.norms().keys() - set(MATRICES)):
            raise BadAdapter(
                f"{module}: the base has no such module; was the adapter trained for another one?"
            )

    def _check_size(self) -> None:
        size = sum(len(tensor.data) for kinds in self._saved.values() for tensor in kinds.values())
        if size > self._bytes_max:
            raise BadAdapter(
                f"{', '.join(sorted(self._saved)[:4])}: {size / _MIB:.1f} MiB of whole modules, "
                f"more than max_whole_modules_mib ({self._bytes_max // _MIB}); raise it, or train "
                f"with LoRA alone"
            )

    def _norms(self) -> Iterator[tuple[str, Tensor]]:
        for module, size in self._base.norms().items():
            saved = self._saved.get(module, {})
            if not self._config.saves(self._full(module)):
                for kind in saved:
                    raise _unnamed(module, kind, "modules_to_save")
                continue
            if saved.keys() != {"weight"}:
                raise _missing(module, "weight", "modules_to_save")
            if saved["weight"].shape != (size,):
                raise BadAdapter(
                    f"{module}.weight: shape {list(saved['weight'].shape)}, expected {[size]} for "
                    f"this base; was the adapter trained for another one?"
                )
            yield module, saved["weight"]

    def _rows(self) -> dict[str, Rows]:
        fields = {module: self._field(module) for module in MATRICES}
        beside = {
            module: self._saved.get(module, {}).get(_ROLES[fields[module]].beside)
            for module in MATRICES
        }
        if self._base.tie_word_embeddings:
            one, other = beside.values()
            if one and other and (one.shape, one.data) != (other.shape, other.data):
                raise BadAdapter(
                    "embed_tokens and lm_head: the base ties them, and these differ; name both in "
                    "modules_to_save, and train the adapter again"
                )
            beside = dict.fromkeys(MATRICES, one or other)
        found = {}
        for module in MATRICES:
            own = beside[module]
            if fields[module] == "modules_to_save":
                own = self._saved[module]["weight"]
            rows = self._changed(module, own)
            if fields[module] == "trainable_token_indices":
                rows = self._with_tokens(module, rows)
            if len(rows.ids):
                found[module] = rows
        return found

    def _field(self, module: str) -> str | None:
        """Return which field of the configuration names a matrix, and check what is saved of it."""
        full = self._full(module)
        named = {
            "target_modules": self._config.targets(full),
            "modules_to_save": self._config.saves(full),
            "trainable_token_indices": bool(self._indices(module)),
        }
        fields = [field for field, is_named in named.items() if is_named]
        if len(fields) > 1:
            raise BadAdapter(f"{fields[1]}: {module} is in {fields[0]} too; name it in one of them")
        field = fields[0] if fields else None
        role, saved = _ROLES[field], self._saved.get(module, {})
        for kind in sorted(saved.keys() - {role.beside, *role.own}):
            raise _unnamed(module, kind, "the configuration")
        follows = field == "trainable_token_indices" and self._source(module) != module
        if field and role.own and role.own[0] not in saved and not follows:
            raise _missing(module, role.own[0], field)
        copies = [saved[kind] for kind in role.own if kind in saved]
        if follows and copies:
            copies.append(self._saved[self._source(module)][_DELTA])
        if any((copy.shape, copy.data) != (copies[0].shape, copies[0].data) for copy in copies):
            raise BadAdapter(f"{module}: the file has it twice, unlike each other; remove one")
        return field

    def _full(self, module: str) -> str:
        """Return a module's name in the base."""
        return self._spelled.get(module, module if module == HEAD else f"model.{module}")

    def _source(self, module: str) -> str:
        """Return whose rows of trainable_token_indices a matrix takes.

        PEFT lets a tied head follow the embedding, unless it was told of other tokens for it.
        """
        embedding, head = (self._config.token_indices(each) for each in MATRICES)
        follows = self._base.tie_word_embeddings and embedding and head in ((), embedding)
        return EMBEDDING if follows else module

    def _indices(self, module: str) -> tuple[int, ...]:
        return self._config.token_indices(self._source(module))

    def _changed(self, module: str, own: Tensor | None) -> Rows:
        """Return the rows of a matrix that are not the base's."""
        tokens, hidden = self._base.vocab_size, self._base.hidden_size
        if own is None:
            return Rows(np.empty(0, np.int64), np.empty((0, hidden), np.float32), "F32")
        if len(own.shape) != 2 or own.shape[1] != hidden or own.shape[0] < tokens:
            raise BadAdapter(
                f"{module}: shape {list(own.shape)}, expected {[tokens, hidden]} for this base, or "
                f"more rows; was the adapter trained for another one?"
            )
        if own.shape[0] > tokens + ADDED_TOKENS_MAX:
            raise BadAdapter(
                f"{module}: {own.shape[0] - tokens} rows more than the base; at most "
                f"{ADDED_TOKENS_MAX} are taken; was the adapter trained for another one?"
            )
        ids = base_rows.changed(module, own, self._base)
        return Rows(ids, own.array[ids], own.dtype)

    def _with_tokens(self, module: str, rows: Rows) -> Rows:
        """Put the rows of trainable_token_indices among the others, or in their place."""
        delta, indices = self._saved[self._source(module)][_DELTA], self._indices(module)
        tokens = rows.tokens(self._base)
        expected = (len(indices), self._base.hidden_size)
        if delta.shape != expected:
            raise BadAdapter(
                f"{module}.{_DELTA}: shape {list(delta.shape)}, expected {list(expected)} for "
                f"trainable_token_indices and this base; was the adapter trained for another one?"
            )
        if len(set(indices)) != len(indices) or not all(0 <= i < tokens for i in indices):
            raise BadAdapter(
                f"trainable_token_indices: they must be different tokens of 0 .. {tokens - 1}; "
                f"train the adapter again"
            )
        ids = np.union1d(rows.ids, np.array(indices, np.int64))
        values = np.empty((len(ids), self._base.hidden_size), np.float32)
        values[np.searchsorted(ids, rows.ids)] = floats(rows.values, rows.dtype)
        values[np.searchsorted(ids, indices)] = floats(delta.array, delta.dtype)
        return Rows(ids, values, "F32")


def _unnamed(module: str, kind: str, field: str) -> BadAdapter:
    return BadAdapter(
        f"{module}.{kind}: {field} does not name it; mend adapter_config.json, or remove the tensor"
    )


def _missing(module: str, kind: str, field: str) -> BadAdapter:
    return BadAdapter(f"{module}.{kind} is missing, which {field} names; save the adapter again")


def _others(base: BaseShapes) -> Iterator[str]:
    """Yield the names of modules that cannot be whole, as far as one could mean them."""
    yield from ("", "model", "model.layers", "model.rotary_emb")
    for layer in range(base.num_hidden_layers):
        name = f"model.layers.{layer}"
        yield from (name, f"{name}.self_attn", f"{name}.mlp", f"{name}.mlp.act_fn")
        yield from (f"{name}.{block}.{module}" for module, block in MODULES.items())
