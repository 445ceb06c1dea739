"""torch alone: each row's matrices gathered, and two batched products."""

import torch

from tests.bench.gpu import adapters

NAME = "torch bmm"
GATHERED_BYTES_MAX = 8 * 2**30


class TooLarge(Exception):
    """The copies of a batch's matrices have no room."""


class Stacked:
    """Adapters padded to the greatest rank, one tensor of all of them for each module.

    ``a[layer][site][module]`` is [adapters, rank, in], ``b`` likewise [adapters, out, rank].
    """

    def __init__(self, shape, ranks, *, layers, dtype, place):
        rank = int(max(ranks))

        def empty(*sizes):
            return torch.zeros(len(ranks), *sizes, dtype=dtype, device=place)

        a = [[empty(rank, site.features) for _ in site.widths] for site in shape.sites]
        b = [[empty(width, rank) for width in site.widths] for site in shape.sites]
        for slot, own in enumerate(ranks):
            for i, site in enumerate(adapters.matrices(shape, slot, int(own), place, dtype)):
                for module, (one, other) in enumerate(site):
                    a[i][module][slot, : int(own)] = one
                    b[i][module][slot, :, : int(own)] = other
        self.a = [a, *(_copy(a) for _ in range(layers - 1))]
        self.b = [b, *(_copy(b) for _ in range(layers - 1))]


def _copy(sites):
    return [[tensor.clone() for tensor in site] for site in sites]


class Engine:
    """All adapters in every layer; layers hold the same."""

    def __init__(self, shape, ranks, *, layers, tokens_max, dtype, place, stacked=None):
        self._stacked = stacked or Stacked(shape, ranks, layers=layers, dtype=dtype, place=place)
        self._place = place
        largest = max(max(site.features, *site.widths) for site in shape.sites)
        self._row_bytes = largest * int(max(ranks)) * dtype.itemsize

    def prepare(self, rows):
        """Return ``add(y, x, layer, site)`` for a batch."""
        if len(rows) * self._row_bytes > GATHERED_BYTES_MAX:
            raise TooLarge
        slots = torch.from_numpy(rows).to(self._place)

        def add(y, x, layer, site):
            column = 0
            for a, b in zip(
                self._stacked.a[layer][site], self._stacked.b[layer][site], strict=True
            ):
                v = torch.bmm(a[slots], x[:, :, None])
                width = b.shape[1]
                y[:, column : column + width] += torch.bmm(b[slots], v)[:, :, 0]
                column += width

        return add
