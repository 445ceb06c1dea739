"""weft's own kernels, weights in pages of an arena."""

import numpy as np
import torch

from tests.bench.gpu import adapters, batches, device
from weft.kernels.sgmv import granules, packing
from weft.kernels.sgmv.granules import Module, Tables
from weft.kernels.sgmv.triton import Limits, PagedLora, Plan

NAME = "weft"


class Engine:
    """All adapters in every layer; layers hold the same."""

    def __init__(self, shape, ranks, *, layers, tokens_max, dtype, place):
        self._place = place
        tables = Tables(len(ranks), layers, len(shape.sites), _pages(shape, max(ranks), dtype))
        laid = []
        for slot, rank in enumerate(ranks):
            sites = adapters.matrices(shape, slot, int(rank), place, dtype)
            modules = [
                [Module(i, a.cpu(), b.cpu(), 1.0) for i, (a, b) in enumerate(site)]
                for site in sites
            ]
            laid.append(tables.lay_out(slot, 0, modules, dtype))
        self._fill(shape, tables, laid, dtype, layers)
        self._lora = PagedLora(
            self._arena,
            tables,
            [site.widths for site in shape.sites],
            Limits(tokens_max, min(tokens_max, len(ranks)), int(max(ranks))),
            compute_dtype=dtype,
            processors=device.processors(place),
        )

    def _fill(self, shape, tables, laid, dtype, layers):
        """Scatter what is laid out over an arena, and over each layer alike."""
        page_granules = shape.page_bytes // (granules.RANKS * granules.COLUMNS * dtype.itemsize)
        counts = [-(-each.granules // page_granules) for each in laid]
        free = np.random.default_rng(0).permutation(sum(counts))
        arena = torch.zeros(
            layers, sum(counts), shape.page_bytes, dtype=torch.uint8, device=self._place
        )
        self._arena = granules.typed(arena, dtype)
        for slot, (each, count) in enumerate(zip(laid, counts, strict=True)):
            pages, free = free[:count], free[count:]
            tables.pages[slot, :count] = pages
            packing.write(self._arena, 0, pages.tolist(), each)
        self._arena[1:] = self._arena[:1]
        for table in (tables.groups, tables.a_start, tables.b_start, tables.scales):
            table[:, 1:] = table[:, :1]

    def prepare(self, rows):
        """Return ``add(y, x, layer, site)`` for a batch."""
        planner = self._lora.planner(len(rows))
        ints = np.zeros(planner.bounds.ints, dtype=np.int32)
        starts, slots = batches.segments(rows)
        counts = planner.lay_out(ints, starts, slots, self._lora.groups)
        plan = Plan(torch.from_numpy(ints).to(self._place), counts, planner)
        return lambda y, x, layer, site: self._lora.add(y, x, layer, site, plan)


def _pages(shape, rank, dtype):
    """Return how many pages an adapter has at most."""
    groups = -(-int(rank) // granules.RANKS)
    columns = sum(
        len(site.widths) * -(-site.features // granules.COLUMNS)
        + sum(-(-width // granules.COLUMNS) for width in site.widths)
        for site in shape.sites
    )
    size = groups * columns * granules.RANKS * granules.COLUMNS * dtype.itemsize
    return -(-size // shape.page_bytes)
