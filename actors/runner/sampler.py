"""Draws the next token of every row that wants one, each by its own rules: on a CPU.

``device_sampler.py`` does the same without waiting for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from weft.actors.runner.own_step import Wider
from weft.actors.runner.rules import Adjustments, Rules, rules_of
from weft.kernels.sample.cpu import highest
from weft.kernels.sample.philox import uniform
from weft.kernels.sample.reference import TEMPERATURE_MIN, draw, min_p, top_k_top_p
from weft.runtime.messages import Join, RowSampling, TokenLogprobs

_GREEDY = Rules(
    RowSampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0), 0, 0, None,
    adjusts=False, filters=False,
)  # fmt: skip


class Drawn(NamedTuple):
    """The outcome for one step's rows."""

    tokens: Tensor  # [R] int64
    failed: list[int]  # indices that have no finite logit to choose; their token is 0
    logprobs: list[TokenLogprobs]


class Sampler:
    """Keeps each row's rules from the step in which it joins to the one in which it leaves.

    A row's token depends on its logits, its rules and its position, and on nothing else.
    """

    def __init__(self) -> None:
        self._rules: dict[int, Rules] = {}

    def join(self, join: Join) -> None:
        """Take in how a row is sampled."""
        assert join.row not in self._rules
        self._rules[join.row] = rules_of(join)

    def leave(self, row: int) -> None:
        """Forget a row."""
        del self._rules[row]

    def sample(
        self,
        logits: Tensor,
        rows: Sequence[int],
        positions: Sequence[int],
        wider: Sequence[Wider] = (),
    ) -> Drawn:
        """Draw a token for each of ``rows``.

        Args:
            logits: [R, V] float32; changed in place.
            rows: [R], each has joined.
            positions: [R], which the drawn tokens will take in their sequences.
            wider: those of ``rows`` that may draw more tokens; changed in place.
        """
        rules = [self._rules[row] for row in rows]
        if not wider:
            return self._sample(logits, rules, positions)
        # Not all at once: the order of a row's sums would depend on how many tokens others have.
        apart = {i for part in wider for i in part.which}
        # What is drawn here for rows of more tokens is nothing that anybody asks for.
        of_base = [_GREEDY if i in apart else rule for i, rule in enumerate(rules)]
        tokens, failed, logprobs = self._sample(logits, of_base, positions)
        failed = [i for i in failed if i not in apart]
        for which, own in wider:
            drawn = self._sample(own, [rules[i] for i in which], [positions[i] for i in which])
            tokens[which] = drawn.tokens
            failed += [which[i] for i in drawn.failed]
            logprobs += [
                msgspec.structs.replace(each, index=which[each.index]) for each in drawn.logprobs
            ]
        return Drawn(tokens, sorted(failed), sorted(logprobs, key=lambda each: each.index))

    def _sample(self, logits: Tensor, rules: list[Rules], positions: Sequence[int]) -> Drawn:
        if not rules:  # part of a prompt, and nothing else
            return Drawn(torch.empty(0, dtype=torch.int64), [], [])
        most, tokens = highest(logits)
        failed = _not_finite(most)
        if failed:
            logits[failed] = 0.0
        logprobs = self._logprobs_before(logits, rules)
        adjusted = [i for i, rule in enumerate(rules) if rule.adjusts]
        if adjusted:
            Adjustments.of(rules, positions, adjusted).apply(logits, torch.from_numpy)
            most, tokens[adjusted] = highest(logits[adjusted])
            lost = [adjusted[j] for j in _not_finite(most)]  # e.g. every token is banned
            if lost:
                logits[lost] = 0.0
                failed = sorted({*failed, *lost})
        drawing = [i for i, rule in enumerate(rules) if rule.sampling.temperature > 0]
        if drawing:
            tokens[drawing] = self._draw(logits, rules, positions, drawing)
        if failed:
            tokens[failed] = 0
        for index, rule in enumerate(rules):
            if rule.history is not None:
                rule.history.add(int(tokens[index]), is_output=True)
        return Drawn(tokens, failed, _with_chosen(logprobs, tokens, frozenset(failed)))

    def _draw(
        self, logits: Tensor, rules: list[Rules], positions: Sequence[int], which: list[int]
    ) -> Tensor:
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32)[:, None]

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
                column([size if size > 0 else logits.shape[1] for size in k]),
                column([chosen[j].sampling.top_p for j in cut]),
            )
        noise = uniform(
            np.array([rule.sampling.seed for rule in chosen], dtype=np.int64),
            np.array([rule.choice for rule in chosen], dtype=np.int64),
            np.array([positions[i] for i in which], dtype=np.int64),
        )
        return draw(scaled, torch.from_numpy(noise))

    def _logprobs_before(
        self, logits: Tensor, rules: list[Rules]
    ) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        """Return the log probabilities, the top tokens and their own, of the rows that ask."""
        asking = [i for i, rule in enumerate(rules) if rule.sampling.logprobs is not None]
        if not asking:
            return {}
        most = max(rules[i].sampling.logprobs or 0 for i in asking)
        everything = logits[asking].log_softmax(dim=-1)
        values, ids = everything.topk(min(most, logits.shape[1]), dim=-1)
        result = {}
        for j, i in enumerate(asking):
            count = rules[i].sampling.logprobs or 0
            result[i] = (everything[j], ids[j, :count], values[j, :count])
        return result


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
