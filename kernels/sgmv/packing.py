"""Puts an adapter's matrices into pages of the device's arena, cut into granules."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weft.kernels.native.library import NUMBER, POINTER, beside
from weft.kernels.sgmv.granules import COLUMNS, RANKS, Laid, pack, sent

# As packing.c numbers them.
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class _Place(ctypes.Structure):
    """``place`` in packing.c."""

    _fields_ = [
        *((name, POINTER) for name in ("memory", "pages")),
        *((name, NUMBER) for name in ("page_count", "page_granules", "granules", "type")),
    ]


library = beside(__file__, "packing.c", weft_pack=[None, POINTER, NUMBER, POINTER])


def write(arena: Tensor, layer: int, pages: Sequence[int], laid: Laid) -> None:
    """Put an adapter's matrices of one layer into its pages, rounded to the arena's type.

    ``arena`` is as ``granules.typed`` returns it. What is left of the last page becomes zero. On a
    GPU it is work for the current stream, and the host does not wait.
    """
    used = list(pages[: -(-laid.granules // arena.shape[2])])
    if not used:
        return
    if not arena.is_cuda:
        put(laid, arena[layer], used)
        return
    whole = torch.empty(len(used), *arena.shape[2:], dtype=arena.dtype, pin_memory=True)
    put(laid, whole, range(len(used)))
    index = sent(torch.tensor(used), arena.device)
    arena[layer].index_copy_(0, index, whole.to(arena.device, non_blocking=True))


def put(laid: Laid, memory: Tensor, pages: Sequence[int]) -> None:
    """Fill pages of host memory, [pages, page_granules, 8, 128], as ``assemble`` defines it."""
    assert memory.is_contiguous()
    assert len(pages) * memory.shape[1] >= laid.granules
    found = library()
    if found is None:
        whole = assemble(laid, memory.dtype)
        padding = len(pages) * memory.shape[1] - laid.granules
        memory[list(pages)] = F.pad(whole, (0, 0, 0, 0, 0, padding)).view(-1, *memory.shape[1:])
        return
    pieces = np.array(
        [
            (matrix.address, _TYPES[matrix.dtype], *matrix.shape, *matrix.strides, *where)
            for matrix, *where in laid.pieces
        ],
        dtype=np.int64,
    )
    numbers = np.array(pages, dtype=np.int32)
    place = _Place(
        memory.data_ptr(), numbers.ctypes.data, len(pages), memory.shape[1], laid.granules,
        _TYPES[memory.dtype],
    )  # fmt: skip
    found.weft_pack(pieces.ctypes.data, len(pieces), ctypes.addressof(place))


def assemble(laid: Laid, dtype: torch.dtype) -> Tensor:
    """Return the granules that pieces are cut into, [granules, 8, 128]."""
    whole = torch.zeros(laid.granules, RANKS, COLUMNS, dtype=dtype)
    for matrix, first, stride in laid.pieces:
        groups = -(-matrix.shape[0] // RANKS)
        packed = pack(matrix.tensor().to(dtype)).view(-1, groups, RANKS, COLUMNS)
        block = torch.arange(len(packed))[:, None]
        whole[first + block * stride + torch.arange(groups)] = packed
    return whole
