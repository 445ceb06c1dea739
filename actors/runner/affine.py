"""What DoRA's magnitudes and biases of B make of a module's output, worked out at their load.

DoRA (Liu et al. 2024, arXiv 2402.09353) scales the rows of ``W + s B A`` to the lengths ``m``. With
n their own lengths and b the base's bias, its output is ``f y + (1 - f) b``, where f is m / n and y
what the base and the update give together. Neither W nor B A is needed whole for n:

    n^2 = |W|^2 + 2 s B . (W A^T) + s^2 B A . B A

by rows: the base itself multiplies A, and A A^T makes the last term one of small matrices. Each
term is a sum over inputs, so that ranks which divide these add up theirs: beside the steps, in the
threads that load, each of which loads the same adapters in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from weft.actors.runner.operations import Projection
from weft.kernels.collectives.reference import Collectives
from weft.kernels.sgmv.granules import Affine, Module
from weft.kernels.sgmv.host_matrix import HostMatrix

# Of a row's squared length: where the update cancels the base but for rounding.
_SQUARE_MIN = 1e-12


class BaseSite(NamedTuple):
    """The base's linear layers that share an input, as far as they are on this rank."""

    projection: Projection
    squares: Tensor  # [out] float32, of each row of the weight as it was saved
    bias: Tensor | None  # [out] float32
    dtype: torch.dtype  # of what the projection takes


class Base(NamedTuple):
    """What adapters must know of one rank's part of the model."""

    sites: Sequence[Mapping[str, BaseSite]]  # by layer and name
    group: Collectives  # of the ranks, as they load adapters: it sums tensors of the host


def of_bias(bias: Tensor, scale: float) -> Affine:
    """Return the affine of a bias of B, [out]: it is scaled as B A is."""
    return Affine(torch.ones_like(bias, dtype=torch.float32), scale * bias.float())


def of_magnitude(
    magnitude: Tensor,
    module: Module,
    site: BaseSite,
    columns: slice,
    group: Collectives | None,
) -> Affine:
    """Return the affine of a DoRA module, in memory of the host.

    Args:
        magnitude: [out], of the outputs that are here.
        module: A of the inputs and B of the outputs that are here.
        site: of the base.
        columns: the module's outputs among the site's.
        group: who has the rest of the inputs; None: nobody.
    """
    device = site.squares.device
    a, b, scale = HostMatrix.of(module.a).tensor(), HostMatrix.of(module.b).tensor(), module.scale
    zeros = torch.zeros(1, a.shape[1])
    through = site.projection(torch.cat((a.float(), zeros)).to(device, site.dtype)).double()
    # The last row is the projection's bias.
    product = (through[:-1] - through[-1])[:, columns].t()  # W A^T, [out, rank]
    wide_a, wide_b = a.to(device).double(), b.to(device).double()
    cross = (wide_b * product).sum(dim=1)
    own = ((wide_b @ (wide_a @ wide_a.t())) * wide_b).sum(dim=1)
    squares = (site.squares[columns].double() + 2 * scale * cross + scale**2 * own).float().cpu()
    if group is not None:
        group.all_reduce(squares)
    factor = magnitude.float() / squares.clamp(min=_SQUARE_MIN).sqrt()
    if site.bias is None:
        return Affine(factor, torch.zeros_like(factor))
    return Affine(factor, (1 - factor) * site.bias[columns].cpu())
