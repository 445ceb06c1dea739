"""Which part of a model each rank of a tensor-parallel group holds. Integers only.

Columns of q, k, v, gate and up are split over the ranks, and so are the inputs of o and down, whose
outputs are summed over the ranks; the vocabulary is split too. An adapter is split as its base: of
the first five B, of the other two A (Shoeybi et al. 2019 for the split, arXiv 1909.08053). Of what
it changes in the embedding or the head, each rank has the part of its tokens; of rows that are the
adapter's own, which may be of any tokens, each has an even share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from weft.runtime.config import ConfigError

# What is split unevenly is split into blocks of so many, the width of the widest vectors.
BLOCK = 16


class Span(NamedTuple):
    """Indices from ``start`` to before ``end``."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """How many there are."""
        return self.end - self.start


class Widths(NamedTuple):
    """What of a decoder is split."""

    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int


@dataclass(frozen=True)
class Shard:
    """One rank's part: heads of queries, heads of keys and values, neurons, tokens.

    A rank's query heads read its own key heads and no others. With fewer key heads than ranks,
    several ranks hold the same one.
    """

    rank: int
    heads: Span
    kv_heads: Span
    neurons: Span  # of the intermediate layer
    tokens: Span  # of the vocabulary; the last ranks may have fewer, or none
    tokens_padded: int  # of the vocabulary, on every rank alike
    head_dim: int

    def outputs(self, module: str) -> Span | None:
        """Return the rows of a module's weight ("q_proj", …) that are here; None: all."""
        return {
            "q_proj": self._columns(self.heads),
            "k_proj": self._columns(self.kv_heads),
            "v_proj": self._columns(self.kv_heads),
            "gate_proj": self.neurons,
            "up_proj": self.neurons,
        }.get(module)

    def inputs(self, module: str) -> Span | None:
        """Return the columns of a module's weight that are here; None: all."""
        return {"o_proj": self._columns(self.heads), "down_proj": self.neurons}.get(module)

    def _columns(self, heads: Span) -> Span:
        return Span(heads.start * self.head_dim, heads.end * self.head_dim)


def shard(widths: Widths, rank: int, size: int) -> Shard:
    """Return the part of rank ``rank`` of ``size``.

    Raises ``ConfigError`` if the model cannot be split so: each rank has as many query heads as
    the others, and whole groups of them or parts of one group.
    """
    assert 0 <= rank < size
    refusal = _refusal(widths, size)
    if refusal is not None:
        possible = [str(n) for n in range(1, widths.heads + 1) if _refusal(widths, n) is None]
        raise ConfigError(f"tensor_parallel_size is {size}: {refusal}; use {_listed(possible)}")
    heads = widths.heads // size
    kv_heads = max(1, widths.kv_heads // size)
    kv_start = rank * widths.kv_heads // size
    tokens = -(-_blocks(widths.vocabulary) // size) * BLOCK if size > 1 else widths.vocabulary
    start = min(rank * tokens, widths.vocabulary)
    return Shard(
        rank=rank,
        heads=Span(rank * heads, (rank + 1) * heads),
        kv_heads=Span(kv_start, kv_start + kv_heads),
        neurons=_split(widths.intermediate, rank, size),
        tokens=Span(start, min(start + tokens, widths.vocabulary)),
        tokens_padded=tokens,
        head_dim=widths.head_dim,
    )


def share(count: int, rank: int, size: int) -> Span:
    """Return a rank's part of ``count`` things that lie evenly on all; the last have fewer."""
    each = -(-count // size)
    return Span(min(rank * each, count), min((rank + 1) * each, count))


def _refusal(widths: Widths, size: int) -> str | None:
    if widths.heads % size:
        return f"the model's {widths.heads} attention heads do not divide by it"
    if widths.kv_heads % size and size % widths.kv_heads:
        return f"the model's {widths.kv_heads} key-value heads neither divide by it nor divide it"
    if _blocks(widths.intermediate) < size:
        return f"the model's intermediate size is {widths.intermediate}, less than {BLOCK} each"
    return None


def _split(count: int, rank: int, size: int) -> Span:
    """Return a rank's part of ``count`` in whole blocks, but for a rest that the last rank has."""
    blocks = _blocks(count)
    edges = [min(count, (part * blocks + size - 1) // size * BLOCK) for part in (rank, rank + 1)]
    return Span(edges[0], edges[1])


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _listed(options: list[str]) -> str:
    return options[0] if len(options) == 1 else f"{', '.join(options[:-1])} or {options[-1]}"
