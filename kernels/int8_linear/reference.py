"""What a linear layer computes whose weights and inputs are rounded to bytes, in plain torch.

Weights are rounded once, with a scale for each output. Inputs are rounded when they come, each row
by itself, with a scale for each group of them: a few channels that are much larger than the others,
as language models have them, then cost the precision of their own groups alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Inputs that share a scale.
GROUP = 64
# Symmetric: -128 is not used.
MOST = 127
# Largest magnitudes below it, whose inverse would not be finite, are taken as 0.
LEAST = 1e-30


def round_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to the nearest multiples of its largest magnitude over 127.

    Args:
        weight: [out, in] of any floating type.

    Returns:
        [out, in] int8 and [out] float32: a weight is near their product.
    """
    wide = weight.float()
    scales = wide.abs().amax(dim=1) / MOST
    # A row of zeros has no scale; any will do.
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    return (wide / scales[:, None]).round().to(torch.int8), scales


def round_inputs(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each group of a row to the nearest multiples of its largest magnitude over 127.

    Args:
        x: [T, in] float32.

    Returns:
        [T, groups, GROUP] float32, whole numbers, and [T, groups] float32: an input is near their
        product. The last group is filled up with zeros. The scale of a group with anything that is
        not finite is NaN.
    """
    groups = -(-x.shape[1] // GROUP)
    x = torch.nn.functional.pad(x, (0, groups * GROUP - x.shape[1])).view(len(x), groups, GROUP)
    most = x.abs().amax(dim=2)
    is_any = most.isfinite() & (most >= LEAST)
    # A number over a tensor would be its product with the reciprocal, which is rounded twice.
    inverse = torch.where(is_any, torch.tensor(float(MOST)) / most, 0.0)
    scales = torch.where(is_any, most / MOST, torch.where(most.isfinite(), 0.0, torch.nan))
    return (x * inverse[:, :, None]).round().nan_to_num(0.0), scales


class Int8Linear:
    """``y = x W^T + bias`` of rounded x and W: x [T, in] float32, W [out, in], y [T, out] float32.

    A group's sum of products is a whole number that float32 holds, whatever its order. Groups are
    added first to last, and each operation is rounded by itself: so all that compute this give the
    same bits, for a row alone and among others.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """``weight`` is [out, in] of any floating type; ``bias`` is [out] or None."""
        self.out_features, self.in_features = weight.shape
        values, self._scales = round_weight(weight)
        self._groups = [
            group.t().float().contiguous() for group in torch.split(values, GROUP, dim=1)
        ]
        self._bias = torch.zeros(self.out_features) if bias is None else bias.float()

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        values, scales = round_inputs(x)
        y = torch.zeros(len(x), self.out_features)
        for index, group in enumerate(self._groups):
            whole = values[:, index, : len(group)] @ group
            y += whole * scales[:, index, None]
        return y * self._scales + self._bias
