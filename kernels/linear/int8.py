"""Weights as signed bytes with a scale for each output."""

from __future__ import annotations

import torch
from torch import Tensor

# Symmetric: -128 is not used.
_MOST = 127


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to the nearest multiples of its largest magnitude over 127.

    Args:
        weight: [out, in] of any floating type.

    Returns:
        [out, in] int8 and [out] float32: a weight is near their product.
    """
    wide = weight.float()
    scales = wide.abs().amax(dim=1) / _MOST
    # A row of zeros has no scale; any will do.
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    return (wide / scales[:, None]).round().to(torch.int8), scales
