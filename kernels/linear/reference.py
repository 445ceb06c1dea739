"""What a linear layer computes, in plain torch; also what runs on a GPU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class Linear:
    """``y = x W^T + bias``: x [T, in], W [out, in], y [T, out], all in the weights' type."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """``weight`` is [out, in]; ``bias`` is [out] or None."""
        self.out_features, self.in_features = weight.shape
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return F.linear(x, self._weight, self._bias)
