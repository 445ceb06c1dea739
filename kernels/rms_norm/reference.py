"""What rms_norm computes, in plain torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return ``x / sqrt(mean(x^2) + epsilon) * weight`` over the last dimension.

    Args:
        x: [..., hidden]; summed in float32.
        weight: [hidden].
        epsilon: added to the mean square.

    Returns:
        A tensor like x.
    """
    return F.rms_norm(x.float(), weight.shape, None, epsilon).to(x.dtype) * weight


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Add ``delta`` to ``x`` in place, and return ``rms_norm`` of the sum.

    Args:
        x: [T, hidden], the residual stream.
        delta: like x, what a block adds to it.
        weight: [hidden].
        epsilon: as for ``rms_norm``.

    Returns:
        A tensor like x.
    """
    return rms_norm(x.add_(delta), weight, epsilon)
