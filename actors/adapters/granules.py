"""How much room an adapter takes on a device: granules of 8 ranks by 128 columns.

A device keeps A as [rank, inputs] and B as [rank, outputs], cut into granules; what is missing to
a whole granule at the end of the ranks or of the columns is zeros. So a rank of 8 costs an eighth
of a rank of 64, and a granule fits the page of any model. The store counts granules, the scheduler
turns them into pages, and runners fill them: all three must agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from weft.actors.adapters.base import BaseShapes, LinearShape

RANKS = 8
COLUMNS = 128


def of_module(rank: int, shape: LinearShape) -> int:
    """Return the granules of one module's A and B together."""
    return -(-rank // RANKS) * (-(-shape.inputs // COLUMNS) + -(-shape.outputs // COLUMNS))


def of_layer(ranks: Mapping[str, int], base: BaseShapes, *, tensor_parallel_size: int) -> int:
    """Return the granules of one layer on one device; ``ranks`` is by module, e.g. "q_proj"."""
    return sum(
        of_module(rank, base.shape(module, tensor_parallel_size)) for module, rank in ranks.items()
    )


def most_of_any_layer(
    ranks: Iterable[tuple[int, str, int]], base: BaseShapes, *, tensor_parallel_size: int
) -> int:
    """Return the granules of the layer that has most; ``ranks``: layer, module and its rank."""
    layers: dict[int, dict[str, int]] = {}
    for layer, module, rank in ranks:
        layers.setdefault(layer, {})[module] = rank
    return max(
        of_layer(modules, base, tensor_parallel_size=tensor_parallel_size)
        for modules in layers.values()
    )
