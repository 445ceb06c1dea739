"""How each row is sampled, and what that changes in its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft.kernels.sample.reference import penalise
from weft.runtime.messages import Join, RowSampling

Array = NDArray[Any]

FLOAT32_MAX = float(np.finfo(np.float32).max)


class History:
    """Which tokens a sequence holds, and how often its output does."""

    def __init__(self, tokens: Sequence[int], prompt_tokens: int) -> None:
        self._index: dict[int, int] = {}
        self._ids = np.zeros(max(64, 2 * len(tokens)), dtype=np.int64)
        self._counts = np.zeros(len(self._ids), dtype=np.float32)
        for position, token in enumerate(tokens):
            self.add(token, is_output=position >= prompt_tokens)

    @property
    def ids(self) -> NDArray[np.int64]:
        """Distinct tokens."""
        return self._ids[: len(self._index)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """How often each of ``ids`` is in the output."""
        return self._counts[: len(self._index)]

    def add(self, token: int, *, is_output: bool) -> None:
        """Note one more token."""
        index = self._index.setdefault(token, len(self._index))
        if index == len(self._ids):
            self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
        self._ids[index] = token
        self._counts[index] += is_output


@dataclass(slots=True)
class Rules:
    """How one row is sampled."""

    sampling: RowSampling
    choice: int
    prompt_tokens: int
    history: History | None
    adjusts: bool  # whether its logits are changed before anything else
    filters: bool  # whether top-k or top-p cuts


def rules_of(join: Join) -> Rules:
    """Return the rules of a row that joins."""
    sampling, history = join.sampling, join.history
    assert (history is not None) == sampling.needs_history
    return Rules(
        sampling,
        join.choice,
        join.prompt_tokens,
        None if history is None else History(history, join.prompt_tokens),
        adjusts=sampling.needs_history
        or bool(sampling.logit_bias)
        or bool(sampling.min_tokens and sampling.min_tokens_banned),
        filters=sampling.top_k > 0 or sampling.top_p < 1.0,
    )


class Adjustments(NamedTuple):
    """What bias, bans and penalties change in the logits of one step, row by row."""

    bias: tuple[Array, Array, Array] | None  # rows, tokens, what is added
    bans: tuple[Array, Array] | None  # rows, tokens
    penalties: tuple[Array, ...] | None  # as ``reference.penalise`` takes them

    @staticmethod
    def of(rules: Sequence[Rules], positions: Sequence[int], which: Sequence[int]) -> Adjustments:
        """Gather those of the rows ``which``, of which row i is drawn at ``positions[i]``."""
        bias = [(i, rules[i].sampling.logit_bias) for i in which if rules[i].sampling.logit_bias]
        bans = [
            (i, rules[i].sampling.min_tokens_banned)
            for i in which
            if positions[i] - rules[i].prompt_tokens < rules[i].sampling.min_tokens
        ]
        seen = [(i, rules[i].history, rules[i].sampling) for i in which]
        entries = [(i, history, s) for i, history, s in seen if history is not None]
        return Adjustments(
            (
                *_pairs((i, list(tokens)) for i, tokens in bias),
                np.array([x for _, tokens in bias for x in tokens.values()], dtype=np.float32),
            )
            if bias
            else None,
            _pairs(bans) if bans else None,
            _penalties(entries) if entries else None,
        )

    def apply(self, logits: Tensor, tensor: Callable[[Array], Tensor]) -> None:
        """Change logits [R, V] in place. ``tensor`` brings an array to their device."""
        if self.bias:
            rows, tokens, values = map(tensor, self.bias)
            logits.index_put_((rows, tokens), values, accumulate=True)
        if self.bans:
            rows, tokens = map(tensor, self.bans)
            banned = torch.full_like(rows, float("-inf"), dtype=logits.dtype)
            logits.index_put_((rows, tokens), banned)
        if self.penalties:
            penalise(logits, *map(tensor, self.penalties))


def _pairs(entries: Iterable[tuple[int, Sequence[int]]]) -> tuple[Array, Array]:
    """Return rows and tokens, both flat, of rows with several tokens each."""
    entries = list(entries)
    counts = [len(tokens) for _, tokens in entries]
    rows = np.repeat(np.array([row for row, _ in entries], dtype=np.int64), counts)
    return rows, np.array([token for _, tokens in entries for token in tokens], dtype=np.int64)


def _penalties(entries: Sequence[tuple[int, History, RowSampling]]) -> tuple[Array, ...]:
    sizes = [len(history.ids) for _, history, _ in entries]

    def spread(values: list[float]) -> Array:
        finite = np.minimum(values, FLOAT32_MAX).astype(np.float32)
        return np.repeat(finite, sizes)

    return (
        np.repeat(np.array([i for i, _, _ in entries]), sizes),
        np.concatenate([history.ids for _, history, _ in entries]),
        np.concatenate([history.counts for _, history, _ in entries]),
        spread([s.repetition_penalty for _, _, s in entries]),
        spread([s.presence_penalty for _, _, s in entries]),
        spread([s.frequency_penalty for _, _, s in entries]),
    )
