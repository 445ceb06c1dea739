"""How much room an adapter takes on a device: granules of 8 ranks by 128 columns.

A device keeps A as [rank, inputs] and B as [rank, outputs], cut into granules; what is missing to
a whole granule at the end of the ranks or of the columns is zeros. So a rank of 8 costs an eighth
of a rank of 64, and a granule fits the page of any model. The store counts granules, the scheduler
turns them into pages, and runners fill them: all three must agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from weft.actors.adapters.base import BaseShapes, LinearShape
from weft.actors.shards import Shard

RANKS = 8
COLUMNS = 128


def of_module(rank: int, shape: LinearShape) -> int:
    """Return the granules of one module's A and B together."""
    return -(-rank // RANKS) * (-(-shape.inputs // COLUMNS) + -(-shape.outputs // COLUMNS))


def of_layer(ranks: Mapping[str, int], base: BaseShapes, shards: Sequence[Shard]) -> int:
    """Return the granules of one layer on the device that has most of the parts of a model.

    ``ranks`` is by module, e.g. "q_proj".
    """
    return max(
        sum(of_module(rank, base.part(module, shard)) for module, rank in ranks.items())
        for shard in shards
    )


def most_of_any_layer(
    ranks: Iterable[tuple[int, str, int]], base: BaseShapes, shards: Sequence[Shard]
) -> int:
    """Return the granules of the layer that has most; ``ranks``: layer, module and its rank."""
    layers: dict[int, dict[str, int]] = {}
    for layer, module, rank in ranks:
        layers.setdefault(layer, {})[module] = rank
    return max(of_layer(modules, base, shards) for modules in layers.values())
