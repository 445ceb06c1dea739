"""sgmv for devices without a kernel of their own: one shrink and few expands a segment.

The inputs of modules that share x are multiplied by their A matrices in one product; x and y are
sorted by adapter, so that a segment's rows are views. Its weights are put together from their
granules each time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft.kernels.native.library import NUMBER, POINTER
from weft.kernels.sgmv.granules import AFFINE_BLOCKS, COLUMNS, RANKS, Tables, unpack, unpack_affine

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class _Addresses(ctypes.Structure):
    """``segments`` in cpu.c."""

    _fields_ = [
        *((name, POINTER) for name in ("starts", "slots", "weights")),
        *((name, NUMBER) for name in ("count", "width")),
    ]


class Segments:
    """One step's rows, sorted by adapter: used at every site of every layer."""

    def __init__(
        self,
        starts: Sequence[int] | Ints = (0,),
        slots: Sequence[int] | Ints = (),
        weights: Sequence[float] | Floats | None = None,
    ) -> None:
        """As for ``lay_out``."""
        self._addresses = _Addresses()
        self.address = ctypes.addressof(self._addresses)
        self.lay_out(starts, slots, weights)

    def lay_out(
        self,
        starts: Sequence[int] | Ints,
        slots: Sequence[int] | Ints,
        weights: Sequence[float] | Floats | None = None,
    ) -> None:
        """Become those of another step. What a program has recorded with these follows them.

        Args:
            starts: [segments + 1]; segment i is rows ``starts[i]:starts[i + 1]``.
            slots: [segments], or [segments, adapters of a row]: these are added one after another;
                past a segment's last one -1.
            weights: like slots, by which an adapter's update is multiplied; None means 1.
        """
        given: Ints = np.array(slots, dtype=np.int64)
        self.starts: Ints = np.array(starts, dtype=np.int64)
        self.slots: Ints = given[:, None] if given.ndim == 1 else given  # [segments, adapters]
        self.weights: Floats = np.ones(self.slots.shape, dtype=np.float32)
        if weights is not None:
            self.weights[:] = np.reshape(weights, self.slots.shape)
        found = self._addresses
        found.starts, found.slots = self.starts.ctypes.data, self.slots.ctypes.data
        found.weights = self.weights.ctypes.data
        found.count, found.width = self.slots.shape

    @property
    def row_adapters(self) -> int:
        """The most adapters of a row."""
        return int(self.slots.shape[1])


class PagedLora:
    """The adapters whose weights lie in the pages of one arena."""

    def __init__(self, arena: Tensor, tables: Tables, widths: Sequence[Sequence[int]]) -> None:
        """``arena`` as ``granules.typed`` returns it; ``widths``: by site, columns of each part."""
        self._arena = arena.flatten(1, 2)  # [layers, pages * page_granules, 8, 128]
        self._page_granules = arena.shape[2]
        self._tables = tables
        self._widths = widths

    def reserve(self, rows: int, row_adapters: int) -> None:
        """Do nothing: memory is taken as it is needed."""

    def add(self, y: Tensor, x: Tensor, layer: int, site: int, segments: Segments) -> None:
        """Add the updates of all segments: y [T, out of the site], x [T, in]."""
        for i, adapters in enumerate(segments.slots.tolist()):
            rows = slice(int(segments.starts[i]), int(segments.starts[i + 1]))
            for slot, weight in zip(adapters, segments.weights[i].tolist(), strict=True):
                if slot >= 0 and rows.start < rows.stop:
                    self._add(y[rows], x[rows], layer, site, slot, weight)

    def _add(self, y: Tensor, x: Tensor, layer: int, site: int, slot: int, weight: float) -> None:
        """Add the update of one adapter to all rows."""
        tables = self._tables
        groups = tables.groups[slot, layer, site]
        if not groups.any():
            return
        affine_starts = tables.affine_start[slot, layer, site]
        start = int(tables.a_start[slot, layer, site])
        a = self._read(slot, layer, start, int(groups.sum()), x.shape[1])
        v = x @ a.to(x.dtype).t()
        rank = column = 0
        for part, width in enumerate(self._widths[site]):
            count = int(groups[part])
            if count:
                start = int(tables.b_start[slot, layer, site, part])
                b = self._read(slot, layer, start, count, width)
                scale = weight * float(tables.scales[slot, layer, site, part])
                ranks = v[:, RANKS * rank : RANKS * (rank + count)]
                own = y[:, column : column + width]
                own.addmm_(ranks, b.to(y.dtype), alpha=scale)
                self._apply_affine(own, slot, layer, int(affine_starts[part]), weight)
            rank += count
            column += width

    def _read(self, slot: int, layer: int, start: int, groups: int, columns: int) -> Tensor:
        """Return [8 * groups, columns] of a slot."""
        found = self._granules(slot, layer, start, groups * -(-columns // COLUMNS))
        return unpack(found, groups)[:, :columns]

    def _apply_affine(self, y: Tensor, slot: int, layer: int, start: int, weight: float) -> None:
        """Replace y by what its module's affine, if there is one, makes of it."""
        if start == 0:
            return
        columns = y.shape[1]
        count = -(-columns // (AFFINE_BLOCKS * COLUMNS))
        factor, offset = unpack_affine(self._granules(slot, layer, start, count), columns)
        y.copy_(factor * y.float() + weight * offset)

    def _granules(self, slot: int, layer: int, start: int, count: int) -> Tensor:
        """Return [count, 8, 128]."""
        index = np.arange(start, start + count)
        pages = self._tables.pages[slot, index // self._page_granules].astype(np.int64)
        places = torch.from_numpy(pages * self._page_granules + index % self._page_granules)
        return self._arena[layer].index_select(0, places.to(self._arena.device))
