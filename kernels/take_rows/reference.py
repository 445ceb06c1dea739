"""What take_rows computes, in plain torch."""

from torch import Tensor


def take_rows(x: Tensor, indices: Tensor) -> Tensor:
    """Return [N, columns], row i of which is row ``indices[i]`` of x; x [rows, columns].

    ``indices`` is [N] int64, each in 0 .. rows - 1.
    """
    return x.index_select(0, indices)
