"""What rotary_ computes, in plain torch (Su et al. 2021; pairs as transformers lays them)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
    """Rotate each pair (i, i + d/2) of every head by its position's angle, in place.

    Args:
        x: [T, heads, d]; tokens may lie apart, as parts of a wider projection do.
        cos: [context, d/2] float32, of position times frequency.
        sin: [context, d/2] float32.
        positions: [T] int64, rows of ``cos`` and ``sin``.
    """
    cos, sin = cos[positions, None], sin[positions, None]
    first, second = x.chunk(2, dim=-1)
    # In float32 at least, and rounded to x's type once.
    x.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))
