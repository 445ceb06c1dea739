"""Draws tokens where the logits are: nothing here waits for the device.

The host lays out what it knows of a step's rows before the step runs. What comes of it is brought
back by one copy, together with everything else that the host wants to know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft.actors.runner.rules import Adjustments, Rules, rules_of
from weft.actors.runner.staging import Staging
from weft.runtime.messages import Join, TokenLogprobs

Ints = NDArray[np.int64]

# From logits [R, V] and a row's numbers, each [R]: as kernels/sample's ``sample``.
Sample = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]
]

# What ``Sample`` takes of each row. The last, its position, changes from step to step.
_NUMBERS = (np.float32, np.float32, np.int32, np.float32, np.int64, np.int64, np.int64)

# Of a row, in a staging: the above, and what aligns them.
STAGED_BYTES = sum(np.dtype(kind).itemsize for kind in _NUMBERS)


class Wanted(NamedTuple):
    """One step's rows, as the host knows them before the step runs."""

    rules: list[Rules]
    numbers: list[Tensor]  # each [R], on the device once the step is there
    adjustments: Adjustments | None
    asking: Ints  # indices of rows whose log probabilities are wanted
    logprobs_max: int  # most likely tokens of them


class Told(NamedTuple):
    """What the host learns of a step."""

    tokens: list[int]  # [R]
    failed: list[int]  # indices that have no finite logit to choose; their token is 0
    logprobs: list[TokenLogprobs]


class DeviceSampler:
    """Keeps each row's rules from the step in which it joins to the one in which it leaves."""

    def __init__(self, vocabulary: int, rows: int, device: torch.device, sample: Sample) -> None:
        self._vocabulary = vocabulary
        self._device = device
        self._sample = sample
        self._rules: dict[int, Rules] = {}
        self._numbers = [np.zeros(rows, dtype=kind) for kind in _NUMBERS[:-1]]

    def join(self, join: Join) -> None:
        """Take in how a row is sampled."""
        assert join.row not in self._rules
        self._rules[join.row] = rules_of(join)
        own = join.sampling
        top_k = own.top_k if 0 < own.top_k < self._vocabulary else 0
        values = (own.temperature, own.min_p, top_k, own.top_p, own.seed, join.choice)
        for numbers, value in zip(self._numbers, values, strict=True):
            numbers[join.row] = value

    def leave(self, row: int) -> None:
        """Forget a row."""
        del self._rules[row]

    def needs_history(self, rows: Ints) -> bool:
        """Whether what the rows have drawn before must be known on the host."""
        return any(self._rules[row].history is not None for row in rows.tolist())

    def stage(self, rows: Ints, positions: Ints, staging: Staging, room: int) -> Wanted:
        """Lay out a step's rows; their tokens will take ``positions``. There is ``room`` for them.

        Of rows that draw by what they have drawn before, everything must have been ``told``.
        """
        rules = [self._rules[row] for row in rows.tolist()]
        columns = [*(numbers[rows] for numbers in self._numbers), positions]
        numbers = [staging.put(column, room)[: len(rows)] for column in columns]
        adjusted = [i for i, rule in enumerate(rules) if rule.adjusts]
        asking = [i for i, rule in enumerate(rules) if rule.sampling.logprobs is not None]
        most = max((rules[i].sampling.logprobs or 0 for i in asking), default=0)
        return Wanted(
            rules,
            numbers,
            Adjustments.of(rules, positions.tolist(), adjusted) if adjusted else None,
            np.array(asking, dtype=np.int64),
            min(most, self._vocabulary),
        )

    def draw(self, logits: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor]:
        """Draw from logits [R, V] float32, which change; return tokens and what to tell the host.

        Both are int64 on the device: [R], and some numbers that ``told`` understands.
        """
        asking, everything = None, None
        if len(wanted.asking):
            asking = self._tensor(wanted.asking)
            everything = logits[asking].log_softmax(dim=-1)
        before = None
        if wanted.adjustments is not None:
            before = logits.amax(dim=-1).isfinite()
            wanted.adjustments.apply(logits, self._tensor)
        tokens, finite = self._sample(logits, *wanted.numbers)
        if before is not None:  # a ban may hide what was not a number
            finite = finite & before
            tokens = tokens.masked_fill(~finite, 0)
        told = [tokens, finite.to(torch.int64)]
        if asking is not None and everything is not None:
            values, ids = everything.topk(wanted.logprobs_max, dim=-1)
            chosen = everything.gather(1, tokens[asking][:, None])
            floats = torch.cat((chosen, values), dim=1).double()
            told += [ids.flatten(), floats.view(torch.int64).flatten()]
        return tokens, torch.cat(told)

    def told(self, numbers: Ints, wanted: Wanted) -> Told:
        """Read what ``draw`` tells, and note the tokens that later ones depend on.

        A rank that does not draw knows tokens alone.
        """
        count, asking, most = len(wanted.rules), len(wanted.asking), wanted.logprobs_max
        tokens: list[int] = numbers[:count].tolist()
        if len(numbers) == count:
            return Told(tokens, [], [])
        failed: list[int] = np.flatnonzero(numbers[count : 2 * count] == 0).tolist()
        for token, rule in zip(tokens, wanted.rules, strict=True):
            if rule.history is not None:
                rule.history.add(token, is_output=True)
        ids = numbers[2 * count : 2 * count + asking * most].reshape(asking, most)
        floats = numbers[2 * count + asking * most :].view(np.float64).reshape(asking, 1 + most)
        logprobs = []
        for j, i in enumerate(wanted.asking.tolist()):
            top = wanted.rules[i].sampling.logprobs or 0
            if i not in failed:
                chosen, *values = floats[j, : 1 + top].tolist()
                logprobs.append(TokenLogprobs(i, chosen, ids[j, :top].tolist(), values))
        return Told(tokens, failed, logprobs)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        """Bring an array to the device behind what it does already."""
        source = torch.from_numpy(array)
        if self._device.type != "cuda":
            return source
        return source.pin_memory().to(self._device, non_blocking=True)
