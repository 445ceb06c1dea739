"""What sampling computes, in plain torch. Every function works on each row by itself.

The order is vLLM's: bias and penalties, temperature, min-p, top-k, top-p, draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft.kernels.sample.philox import uniform

# Below it float32 loses precision, and at last is zero.
TEMPERATURE_MIN = torch.finfo(torch.float32).tiny


def penalise(
    logits: Tensor,
    rows: Tensor,
    tokens: Tensor,
    output_counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> None:
    """Lower the logits of tokens seen before, in place.

    Args:
        logits: [R, V] float32.
        rows: [N] int64; entry i speaks of ``logits[rows[i], tokens[i]]``, each pair at most once.
        tokens: [N] int64, seen in the prompt or the output.
        output_counts: [N] float32, how often in the output.
        repetition: [N] float32; divides positive logits and multiplies negative ones (Keskar et
            al. 2019, as in transformers).
        presence: [N] float32; subtracted once from tokens of the output (OpenAI).
        frequency: [N] float32; subtracted for each time in the output (OpenAI).
    """
    values = logits[rows, tokens]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= frequency * output_counts + presence * (output_counts > 0)
    logits[rows, tokens] = values


def min_p(logits: Tensor, least: Tensor) -> Tensor:
    """Drop the tokens less likely than ``least`` [R, 1] times the most likely one.

    logits is [R, V] after temperature; what is dropped becomes -inf.
    """
    floor = logits.amax(dim=-1, keepdim=True) + least.log()
    return logits.masked_fill(logits < floor, float("-inf"))


def top_k_top_p(logits: Tensor, k: Tensor, p: Tensor) -> Tensor:
    """Keep the ``k`` [R, 1] most likely tokens, then the fewest of these that sum to ``p`` [R, 1].

    At least one token stays. Equal tokens count in the order of their ids. logits is [R, V] after
    temperature; what is dropped becomes -inf.
    """
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(values.shape[-1], device=values.device)
    values = values.masked_fill(rank >= k, float("-inf"))
    sums = values.softmax(dim=-1).double().cumsum(dim=-1)
    before = torch.cat((torch.zeros_like(sums[:, :1]), sums[:, :-1]), dim=-1)
    # Of the last sum, which rounding leaves beside one: p = 1 must drop nothing.
    dropped = (rank >= k) | ((before >= p * sums[:, -1:]) & (rank > 0))
    return logits.masked_fill(torch.empty_like(dropped).scatter_(1, order, dropped), float("-inf"))


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Return one token for each row: [R] int64, by inverting the distribution at ``uniform`` [R].

    logits is [R, V]; ``uniform`` is float64 in [0, 1). Tokens at -inf are never drawn.
    """
    cumulative = logits.softmax(dim=-1).double().cumsum(dim=-1)
    target = (uniform * cumulative[:, -1])[:, None]
    # uniform < 1, so the target lies below the last sum, and the first sum above it is a token's
    # whose own share is not zero.
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def sample(
    logits: Tensor,
    temperature: Tensor,
    min_p: Tensor,
    k: Tensor,
    p: Tensor,
    seeds: Tensor,
    choices: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor]:
    """Draw a token for each row, each by its own numbers: in host memory.

    Args:
        logits: [R, V] float32, after bias and penalties; left as it is.
        temperature: [R] float32; 0: the first of the most likely tokens.
        min_p: [R] float32 in 0 .. 1.
        k: [R] int32; 0: all tokens.
        p: [R] float32 in 0 .. 1, not 0.
        seeds: [R] int64.
        choices: [R] int64.
        positions: [R] int64, which the tokens will take in their sequences.

    Returns:
        Tokens [R] int64, and whether the logits were numbers of which one is finite [R] bool; where
        they were not, the token is 0.
    """
    highest, tokens = logits.max(dim=-1)
    finite = highest.isfinite()
    scaled = logits.masked_fill(~finite[:, None], 0.0)
    # Without the subtraction a temperature near zero turns logits into infinities.
    scaled = scaled - scaled.amax(dim=-1, keepdim=True)
    scaled /= temperature.clamp(min=TEMPERATURE_MIN)[:, None]
    floor = scaled.amax(dim=-1, keepdim=True) + min_p.log()[:, None]
    scaled = scaled.masked_fill(scaled < floor, float("-inf"))
    count = torch.where(k > 0, k, logits.shape[1])
    scaled = top_k_top_p(scaled, count[:, None], p[:, None])
    noise = uniform(seeds.numpy(), choices.numpy(), positions.numpy())
    drawn = draw(scaled, torch.from_numpy(noise))
    tokens = torch.where(temperature > 0, drawn, tokens)
    return tokens.masked_fill(~finite, 0), finite
