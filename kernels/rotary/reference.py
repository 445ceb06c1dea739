"""What rotary computes, in plain torch (Su et al. 2021; pairs as transformers lays them)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + d/2) of every head by its position's angle.

    Args:
        x: [T, heads, d].
        cos: [T, 1, d/2], of position times frequency.
        sin: [T, 1, d/2].

    Returns:
        A new tensor like x.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
