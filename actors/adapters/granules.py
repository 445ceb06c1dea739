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
from weft.actors.shards import Shard, share

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


class Spread(NamedTuple):
    """What lies in the pages of all layers alike, one granule after another in each in turn.

    A page has a part in every layer. What is of the model, such as rows of the head, would fill one
    layer's part and leave the others empty; a norm would fill an eighth of a granule in each.
    """

    embedding_rank: int = 0
    head_rank: int = 0
    embedding_rows: int = 0  # of the adapter's own
    head_rows: int = 0
    norms: Mapping[int, int] = {}  # how many there are of a size

    def granules(self, base: BaseShapes, shards: Sequence[Shard]) -> int:
        """Return the granules of all of it on the device that has most."""
        hidden, size = base.hidden_size, len(shards)
        tokens = max(shard.tokens.size for shard in shards)
        return sum(
            of_matrix(*matrix)
            for matrix in (
                (self.embedding_rank, tokens), (self.embedding_rank, hidden),
                (self.head_rank, hidden), (self.head_rank, tokens),
                (share(self.embedding_rows, 0, size).size, hidden),
                (share(self.head_rows, 0, size).size, hidden),
                *((count, width) for width, count in self.norms.items()),
            )
        )  # fmt: skip


def of_matrix(rows: int, columns: int) -> int:
    """Return the granules of a matrix."""
    return -(-rows // RANKS) * -(-columns // COLUMNS)


def most_of_any_layer(
    sizes: Iterable[tuple[int, str, Size]],
    spread: Spread,
    base: BaseShapes,
    shards: Sequence[Shard],
) -> int:
    """Return the granules of the layer that has most.

    ``sizes``: layer, module and its size; ``spread``: what every layer has its share of.
    """
    layers: dict[int, dict[str, Size]] = {}
    for layer, module, size in sizes:
        layers.setdefault(layer, {})[module] = size
    most = max((of_layer(modules, base, shards) for modules in layers.values()), default=0)
    return most + -(-spread.granules(base, shards) // base.num_hidden_layers)
