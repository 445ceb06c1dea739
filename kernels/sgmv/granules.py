"""Where adapter weights lie: granules of 8 ranks by 128 columns, in pages of the device's arena.

S-LoRA (Sheng et al. 2023) keeps adapters in the pages of the KV cache, a row of a matrix in each. A
granule is a finer piece: it fits pages of any shape, and a rank of 8 costs an eighth of a rank of
64. At most 127 columns and 7 ranks of zeros are padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from weft.kernels.sgmv.host_matrix import HostMatrix

RANKS = 8
COLUMNS = 128

# Modules that share an input: q, k and v.
PARTS_MAX = 3


# 128 columns of an affine are 256 float32, so that a granule of half precision holds two such
# blocks. One of float32 holds no more: adapters are counted before their type is known.
AFFINE_BLOCKS = 2
AFFINE_FLOATS = 2 * COLUMNS


class Affine(NamedTuple):
    """What happens to a module's output, base and update together: ``factor * y + offset``."""

    factor: Tensor  # [out] float32
    offset: Tensor  # [out] float32


class Module(NamedTuple):
    """One adapted module of a site."""

    part: int  # which of the site's modules
    a: Tensor | HostMatrix  # [rank, in]
    b: Tensor | HostMatrix  # [out, rank]
    scale: float  # of B A
    affine: Affine | None = None


class Piece(NamedTuple):
    """A matrix among an adapter's granules of one layer."""

    matrix: HostMatrix  # [ranks, columns], of any strides
    first: int  # granule: that of its first columns and ranks
    stride: int  # granules from a block of columns to the next


class Laid(NamedTuple):
    """What the granules of one layer are to hold."""

    pieces: list[Piece]
    granules: int

    def grown(self, granules: int) -> Laid:
        """Return it with so many more."""
        return self._replace(granules=self.granules + granules)


def pack(matrix: Tensor) -> Tensor:
    """Cut [ranks, columns] into granules: [columns / 128 * ranks / 8, 8, 128], both rounded up.

    The granules of one block of columns are adjacent, so that a range of columns is one run.
    """
    ranks, columns = matrix.shape
    padded = F.pad(matrix, (0, -columns % COLUMNS, 0, -ranks % RANKS))
    cut = padded.view(padded.shape[0] // RANKS, RANKS, -1, COLUMNS)
    return cut.permute(2, 0, 1, 3).reshape(-1, RANKS, COLUMNS)


def unpack(granules: Tensor, groups: int) -> Tensor:
    """Undo ``pack``, but for the padding: [8 * groups, columns rounded up to 128]."""
    cut = granules.view(-1, groups, RANKS, COLUMNS)
    return cut.permute(1, 2, 0, 3).reshape(groups * RANKS, -1)


def pack_affine(affine: Affine, dtype: torch.dtype) -> Tensor:
    """Lay out as granules of ``dtype``, bit by bit: [blocks of 128 columns / 2, 8, 128].

    Block w is in granule w // 2, from float32 number w % 2 * 256 on: 128 factors, 128 offsets.
    """
    columns = torch.stack(affine).float()
    blocks = F.pad(columns, (0, -columns.shape[1] % (AFFINE_BLOCKS * COLUMNS)))
    rows = blocks.view(2, -1, COLUMNS).transpose(0, 1).reshape(-1, AFFINE_BLOCKS * AFFINE_FLOATS)
    floats = RANKS * COLUMNS * dtype.itemsize // 4
    whole = F.pad(rows, (0, floats - rows.shape[1]))
    return whole.view(dtype).view(-1, RANKS, COLUMNS)


def unpack_affine(granules: Tensor, columns: int) -> Affine:
    """Undo ``pack_affine``."""
    floats = granules.flatten(1).view(torch.float32)[:, : AFFINE_BLOCKS * AFFINE_FLOATS]
    factor, offset = floats.reshape(-1, 2, COLUMNS).transpose(0, 1).flatten(1)[:, :columns]
    return Affine(factor, offset)


def typed(arena: Tensor, dtype: torch.dtype) -> Tensor:
    """View an arena's bytes [layers, pages, page_bytes] as granules of ``dtype``.

    The result is [layers, pages, page_granules, 8, 128]. ``page_bytes`` must be a whole number of
    granules.
    """
    layers, pages, _ = arena.shape
    return arena.view(dtype).view(layers, pages, -1, RANKS, COLUMNS)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a host's tensor on a device. A GPU copies it when its current stream comes to it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Tables:
    """Where each slot's weights are, by layer and site; host memory, changed by ``lay_out`` alone.

    Granule g of a slot is in page ``pages[slot, g // page_granules]``, at ``g % page_granules``.
    A module of rank r has ceil(r / 8) groups of ranks. The A of a site's modules are stacked, each
    beginning a group of its own: with G groups in all, columns 128 w .. and group g are granule
    ``a_start + w * G + g``. B is stored [rank, out]: granule ``b_start + w * groups + g`` of its
    module, w counting within the module's own columns. ``affine_start`` is the first granule of a
    module's affine, 0 if it has none.
    """

    def __init__(self, slots: int, layers: int, sites: int, pages_max: int) -> None:
        shape = (slots, layers, sites)
        self.pages: NDArray[np.int32] = np.zeros((slots, pages_max), dtype=np.int32)
        self.groups: NDArray[np.int32] = np.zeros((*shape, PARTS_MAX), dtype=np.int32)
        self.a_start: NDArray[np.int32] = np.zeros(shape, dtype=np.int32)
        self.b_start: NDArray[np.int32] = np.zeros((*shape, PARTS_MAX), dtype=np.int32)
        self.affine_start: NDArray[np.int32] = np.zeros((*shape, PARTS_MAX), dtype=np.int32)
        self.scales: NDArray[np.float32] = np.zeros((*shape, PARTS_MAX), dtype=np.float32)
        self.ranks_max = 0  # of any site of any slot, padded to groups

    def clear(self, slot: int, pages: Sequence[int]) -> None:
        """Give a slot its pages, and no module at any site."""
        assert len(pages) <= self.pages.shape[1], f"{len(pages)} pages of {self.pages.shape[1]}"
        self.pages[slot, : len(pages)] = pages
        self.groups[slot] = 0
        self.affine_start[slot] = 0
        self.ranks_max = RANKS * int(self.groups.sum(axis=-1).max())

    def lay_out(
        self, slot: int, layer: int, sites: Sequence[Sequence[Module]], dtype: torch.dtype
    ) -> Laid:
        """Note where one layer's weights will lie, and return which is to lie where.

        ``dtype`` is that of the granules.
        """
        laid = Laid([], 0)
        for site, modules in enumerate(sites):
            if not modules:
                continue
            place = (slot, layer, site)
            groups = [-(-module.a.shape[0] // RANKS) for module in modules]
            self.a_start[place] = laid.granules
            for module, first in zip(modules, accumulate(groups, initial=0), strict=False):
                start = laid.granules + first
                laid.pieces.append(Piece(HostMatrix.of(module.a), start, sum(groups)))
            laid = laid.grown(sum(groups) * -(-modules[0].a.shape[1] // COLUMNS))
            for module, count in zip(modules, groups, strict=True):
                self.groups[place][module.part] = count
                self.scales[place][module.part] = module.scale
                self.b_start[place][module.part] = laid.granules
                laid.pieces.append(Piece(HostMatrix.of(module.b).t(), laid.granules, count))
                laid = laid.grown(count * -(-module.b.shape[0] // COLUMNS))
                if module.affine is not None:
                    self.affine_start[place][module.part] = laid.granules
                    affine = pack_affine(module.affine, dtype)
                    flat = affine.transpose(0, 1).reshape(RANKS, -1)
                    laid.pieces.append(Piece(HostMatrix.of(flat), laid.granules, 1))
                    laid = laid.grown(len(affine))
            self.ranks_max = max(self.ranks_max, RANKS * sum(groups))
        return laid
