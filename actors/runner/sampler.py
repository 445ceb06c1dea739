"""Draws the next token of every row that wants one, each by its own rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft.kernels.sample.philox import uniform
from weft.kernels.sample.reference import draw, min_p, penalise, top_k_top_p
from weft.runtime.messages import RowSampling, TokenLogprobs

FLOAT32_MAX = float(np.finfo(np.float32).max)
# Below it float32 loses precision, and at last is zero.
TEMPERATURE_MIN = float(np.finfo(np.float32).tiny)


Sample = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]
]
"""``kernels.sample.triton.sample``: tokens, and which rows had something finite to choose."""


class Drawn(NamedTuple):
    """The outcome for one step's rows."""

    tokens: Tensor  # [R] int64, on the host
    failed: list[int]  # indices that have no finite logit to choose; their token is 0
    logprobs: list[TokenLogprobs]


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


class Sampler:
    """Keeps each row's rules from the step in which it joins to the one in which it leaves.

    A row's token depends on its logits, its rules and its position, and on nothing else.
    """

    def __init__(self, vocabulary: int, device: torch.device, sample: Sample | None = None) -> None:
        """``sample`` draws on the device; None: with torch."""
        self._vocabulary = vocabulary
        self._device = device
        self._sample = sample
        self._rules: dict[int, Rules] = {}

    def join(
        self,
        row: int,
        sampling: RowSampling,
        *,
        choice: int,
        prompt_tokens: int,
        history: list[int] | None,
    ) -> None:
        """Take in a row. ``history`` is every token so far, if its logits depend on them."""
        assert row not in self._rules
        assert (history is not None) == sampling.needs_history
        self._rules[row] = Rules(
            sampling,
            choice,
            prompt_tokens,
            None if history is None else History(history, prompt_tokens),
            adjusts=sampling.needs_history
            or bool(sampling.logit_bias)
            or bool(sampling.min_tokens and sampling.min_tokens_banned),
            filters=0 < sampling.top_k < self._vocabulary or sampling.top_p < 1.0,
        )

    def leave(self, row: int) -> None:
        """Forget a row."""
        del self._rules[row]

    def sample(self, logits: Tensor, rows: Sequence[int], positions: Sequence[int]) -> Drawn:
        """Draw a token for each of ``rows``.

        Args:
            logits: [R, V] float32; changed in place.
            rows: [R], each has joined.
            positions: [R], which the drawn tokens will take in their sequences.
        """
        if not rows:  # part of a prompt, and nothing else
            return Drawn(torch.empty(0, dtype=torch.int64), [], [])
        rules = [self._rules[row] for row in rows]
        if self._sample is None:
            tokens, failed, logprobs = self._with_torch(logits, rules, positions)
        else:
            logprobs = self._logprobs_before(logits, rules)
            self._adjust(logits, rules, positions)
            tokens, failed = self._on_device(self._sample, logits, rules, positions)
        host = tokens.cpu()
        for index, rule in enumerate(rules):
            if rule.history is not None:
                rule.history.add(int(host[index]), is_output=True)
        return Drawn(host, failed, _with_chosen(logprobs, host, frozenset(failed)))

    def _with_torch(
        self, logits: Tensor, rules: list[Rules], positions: Sequence[int]
    ) -> tuple[Tensor, list[int], dict[int, tuple[Tensor, Tensor, Tensor]]]:
        highest, tokens = logits.max(dim=-1)
        failed = _not_finite(highest)
        if failed:
            logits[failed] = 0.0
        logprobs = self._logprobs_before(logits, rules)
        adjusted = self._adjust(logits, rules, positions)
        if adjusted:
            highest, tokens[adjusted] = logits[adjusted].max(dim=-1)
            lost = [adjusted[j] for j in _not_finite(highest)]  # e.g. every token is banned
            if lost:
                logits[lost] = 0.0
                failed = sorted({*failed, *lost})
        drawing = [i for i, rule in enumerate(rules) if rule.sampling.temperature > 0]
        if drawing:
            tokens[drawing] = self._draw(logits, rules, positions, drawing)
        if failed:
            tokens[failed] = 0
        return tokens, failed, logprobs

    def _on_device(
        self, sample: Sample, logits: Tensor, rules: list[Rules], positions: Sequence[int]
    ) -> tuple[Tensor, list[int]]:
        sampling = [rule.sampling for rule in rules]
        numbers = [[s.temperature, s.min_p, s.top_p] for s in sampling]
        temperature, min_p, p = self._tensor(np.array(numbers, dtype=np.float32).T.copy())
        integers = [
            [s.top_k, s.seed, rule.choice, position]
            for s, rule, position in zip(sampling, rules, positions, strict=True)
        ]
        k, *streams = self._tensor(np.array(integers, dtype=np.int64).T.copy())
        tokens, finite = sample(logits, temperature, min_p, k, p, *streams)
        return tokens, (~finite.cpu()).nonzero().flatten().tolist()

    def _adjust(self, logits: Tensor, rules: list[Rules], positions: Sequence[int]) -> list[int]:
        """Apply bias, bans and penalties to the rows that have any, and return these."""
        which = [i for i, rule in enumerate(rules) if rule.adjusts]
        for i in which:
            sampling = rules[i].sampling
            if sampling.logit_bias:
                ids = torch.tensor(list(sampling.logit_bias), device=self._device)
                bias = torch.tensor(list(sampling.logit_bias.values()), device=self._device)
                logits[i].index_add_(0, ids, bias.to(logits.dtype))
            if positions[i] - rules[i].prompt_tokens < sampling.min_tokens:
                logits[i, sampling.min_tokens_banned] = float("-inf")
        seen = [(i, rules[i].history, rules[i].sampling) for i in which]
        entries = [(i, history, s) for i, history, s in seen if history is not None]
        if not entries:
            return which
        sizes = [len(history.ids) for _, history, _ in entries]

        def spread(values: list[float]) -> Tensor:
            finite = np.minimum(values, FLOAT32_MAX).astype(np.float32)
            return self._tensor(np.repeat(finite, sizes))

        penalise(
            logits,
            self._tensor(np.repeat(np.array([i for i, _, _ in entries]), sizes)),
            self._tensor(np.concatenate([history.ids for _, history, _ in entries])),
            self._tensor(np.concatenate([history.counts for _, history, _ in entries])),
            spread([s.repetition_penalty for _, _, s in entries]),
            spread([s.presence_penalty for _, _, s in entries]),
            spread([s.frequency_penalty for _, _, s in entries]),
        )
        return which

    def _draw(
        self, logits: Tensor, rules: list[Rules], positions: Sequence[int], which: list[int]
    ) -> Tensor:
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=self._device)[:, None]

        chosen = [rules[i] for i in which]
        temperature = column([max(rule.sampling.temperature, TEMPERATURE_MIN) for rule in chosen])
        scaled = logits[which]
        # Without the subtraction a temperature near zero turns logits into infinities.
        scaled = (scaled - scaled.amax(dim=-1, keepdim=True)) / temperature
        cut = [j for j, rule in enumerate(chosen) if rule.sampling.min_p > 0]
        if cut:
            scaled[cut] = min_p(scaled[cut], column([chosen[j].sampling.min_p for j in cut]))
        cut = [j for j, rule in enumerate(chosen) if rule.filters]
        if cut:
            k = [chosen[j].sampling.top_k for j in cut]
            scaled[cut] = top_k_top_p(
                scaled[cut],
                column([size if size > 0 else self._vocabulary for size in k]),
                column([chosen[j].sampling.top_p for j in cut]),
            )
        noise = uniform(
            np.array([rule.sampling.seed for rule in chosen], dtype=np.int64),
            np.array([rule.choice for rule in chosen], dtype=np.int64),
            np.array([positions[i] for i in which], dtype=np.int64),
        )
        return draw(scaled, self._tensor(noise))

    def _logprobs_before(
        self, logits: Tensor, rules: list[Rules]
    ) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        """Return the log probabilities, the top tokens and their own, of the rows that ask."""
        asking = [i for i, rule in enumerate(rules) if rule.sampling.logprobs is not None]
        if not asking:
            return {}
        most = max(rules[i].sampling.logprobs or 0 for i in asking)
        everything = logits[asking].log_softmax(dim=-1).cpu()
        values, ids = everything.topk(min(most, self._vocabulary), dim=-1)
        result = {}
        for j, i in enumerate(asking):
            count = rules[i].sampling.logprobs or 0
            result[i] = (everything[j], ids[j, :count], values[j, :count])
        return result

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _not_finite(values: Tensor) -> list[int]:
    indices: list[int] = (~values.isfinite()).nonzero().flatten().tolist()
    return indices


def _with_chosen(
    logprobs: dict[int, tuple[Tensor, Tensor, Tensor]], tokens: Tensor, failed: frozenset[int]
) -> list[TokenLogprobs]:
    return [
        TokenLogprobs(i, float(everything[tokens[i]]), ids.tolist(), values.tolist())
        for i, (everything, ids, values) in logprobs.items()
        if i not in failed
    ]
