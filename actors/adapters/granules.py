"""How much room an adapter takes on a device: granules of 8 ranks by 128 columns.

A device keeps A as [rank, inputs] and B as [rank, outputs], cut into granules; what is missing to
a whole granule at the end of the ranks or of the columns is zeros. So a rank of 8 costs an eighth
of a rank of 64, and a granule fits the page of any model. The store counts granules, the scheduler
turns them into pages, and runners fill them: all three must agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from weft.actors.adapters.base import BaseShapes, LinearShape
from weft.actors.shards import Shard

RANKS = 8
COLUMNS = 128

# Output columns of which a granule holds factors and offsets: two float32 each, in half of it if it
# is of float32 itself.
AFFINE_COLUMNS = 256


class Size(NamedTuple):
    """What of an adapted module takes room."""

    rank: int
    has_affine: bool = False  # DoRA's factors, or biases of B


def of_module(size: Size, shape: LinearShape) -> int:
    """Return the granules of all that one module has."""
    columns = -(-shape.inputs // COLUMNS) + -(-shape.outputs // COLUMNS)
    affine = -(-shape.outputs // AFFINE_COLUMNS) if size.has_affine else 0
    return -(-size.rank // RANKS) * columns + affine


def of_layer(sizes: Mapping[str, Size], base: BaseShapes, shards: Sequence[Shard]) -> int:
    """Return the granules of one layer on the device that has most of the parts of a model.

    ``sizes`` is by module, e.g. "q_proj".
    """
    return max(
        sum(of_module(size, base.part(module, shard)) for module, size in sizes.items())
        for shard in shards
    )


def most_of_any_layer(
    sizes: Iterable[tuple[int, str, Size]], base: BaseShapes, shards: Sequence[Shard]
) -> int:
    """Return the granules of the layer that has most; ``sizes``: layer, module and its size."""
    layers: dict[int, dict[str, Size]] = {}
    for layer, module, size in sizes:
        layers.setdefault(layer, {})[module] = size
    return max(of_layer(modules, base, shards) for modules in layers.values())
