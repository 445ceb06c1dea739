"""silu_mul in C for CPUs.

torch computes the elements that are left over of a vector in another way than the others, and which
ones are left over depends on how it splits the batch among threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft.kernels.native.library import NUMBER, POINTER, beside

library = beside(__file__, weft_silu_mul=[None, *[POINTER] * 2, *[NUMBER] * 3])


def silu_mul(gate_up: Tensor) -> Tensor:
    """Compute what ``reference.silu_mul`` computes, in float32."""
    assert gate_up.dtype == torch.float32
    assert gate_up.stride(1) == 1
    tokens, columns = len(gate_up), gate_up.shape[1] // 2
    out = torch.empty(tokens, columns)
    kernel = library()
    assert kernel is not None
    kernel.weft_silu_mul(out.data_ptr(), gate_up.data_ptr(), gate_up.stride(0), tokens, columns)
    return out
