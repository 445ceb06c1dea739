"""Temperature, min-p, top-k, top-p, noise and the draw in Triton: without sorting, on the device.

Computes what reference.py's ``min_p``, ``top_k_top_p`` and ``draw`` do with philox.py's noise. It
differs from them in rounding alone: tokens are weighed by integers of 2 ** -44 of the likeliest
one's weight, where the reference uses float32; so it can draw a neighbour in the order of ids where
the noise falls within about a millionth of the border between two tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from weft.kernels.sample.triton_kernels import sample_kernel

# Tokens of a tile: 8 for each thread of 16 warps. More would not fit in registers, fewer leave a
# processor waiting for memory.
BLOCK = 4096

# A search that is left with so many tokens gets by without reading the row again.
CHOSEN = 4096


class Sampled(NamedTuple):
    """One step's tokens."""

    tokens: Tensor  # [R] int64
    finite: Tensor  # [R] bool; without a finite logit to choose, or with one that is NaN, token 0


def sample(
    logits: Tensor,
    temperature: Tensor,
    min_p: Tensor,
    k: Tensor,
    p: Tensor,
    seeds: Tensor,
    choices: Tensor,
    positions: Tensor,
) -> Sampled:
    """Draw a token for each row, each by its own numbers; nothing waits for the device.

    Args:
        logits: [R, V] float32, after bias and penalties; left as it is.
        temperature: [R] float32; 0: the first of the most likely tokens.
        min_p: [R] float32 in 0 .. 1.
        k: [R] int64; 0: all tokens.
        p: [R] float32 in 0 .. 1, not 0.
        seeds: [R] int64.
        choices: [R] int64.
        positions: [R] int64, which the tokens will take in their sequences.
    """
    rows, vocabulary = logits.shape
    assert logits.dtype == temperature.dtype == min_p.dtype == p.dtype == torch.float32
    assert logits.stride(1) == 1
    device = logits.device
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    finite = torch.empty(rows, dtype=torch.bool, device=device)
    chosen = torch.empty(rows, CHOSEN, dtype=torch.int32, device=device)
    if rows:
        sample_kernel[(rows,)](
            tokens, finite, chosen, logits,
            temperature, min_p.log(), k, p, seeds, choices, positions, logits.stride(0),
            CHOSEN=CHOSEN, VOCABULARY=vocabulary, BLOCK=BLOCK, num_warps=16,
        )  # fmt: skip
    return Sampled(tokens, finite)
