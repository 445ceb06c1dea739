"""What the LoRA update of a mixed batch computes, in plain torch. Slow, obvious, the definition.

Hu et al. 2021 for LoRA, Chen et al. 2023 (Punica) for segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from weft.kernels.sgmv.granules import Affine


class Part(NamedTuple):
    """One adapted module among those that share an input (q, k and v; gate and up)."""

    a: Tensor  # [rank, in]
    b: Tensor  # [out, rank]
    column: int  # of its first output in y
    scale: float = 1.0  # of the update
    affine: Affine | None = None


def sgmv(
    y: Tensor,
    x: Tensor,
    starts: Sequence[int],
    slots: Sequence[int],
    parts: list[list[Part]],
    weights: Sequence[float] | None = None,
) -> None:
    """Add to each segment's rows the update of its own adapter: ``y += weight scale x A^T B^T``.

    A part with an affine then becomes ``factor * y + weight * offset``: biases of B, whose factors
    are 1, and DoRA's magnitudes (Liu et al. 2024), for which only a weight of 1 means something.
    Rows with several adapters are in a segment of each of several calls.

    Args:
        y: [T, out of all parts], changed in place.
        x: [T, in]; the rows of one segment are adjacent.
        starts: segment i is rows ``starts[i]:starts[i + 1]``; may be empty.
        slots: of each segment; negative means the base, whose rows stay as they are.
        parts: by slot, those that its adapter has here; ranks differ freely.
        weights: of each segment; None means 1.
    """
    for i, slot in enumerate(slots):
        rows = slice(starts[i], starts[i + 1])
        weight = 1.0 if weights is None else weights[i]
        for part in parts[slot] if slot >= 0 else []:
            columns = slice(part.column, part.column + part.b.shape[0])
            update = (x[rows].float() @ part.a.float().T) @ part.b.float().T
            y[rows, columns] += (weight * part.scale * update).to(y.dtype)
            if part.affine is not None:
                factor, offset = part.affine
                y[rows, columns] = (factor * y[rows, columns].float() + weight * offset).to(y.dtype)
