"""What adapters have beside updates of layers: norms, and rows of the embedding and of the head.

An adapter may update the embedding and the head, and have rows of them that are its own: few, such
as those of tokens that it has added to the vocabulary, or all. They lie in the pages of all layers,
a granule in each in turn. ``own_step.py`` computes with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from weft.actors.runner.adapter_file import AdapterFile
from weft.actors.shards import Shard, Span, share
from weft.kernels.paged_matrix.reference import Matrix
from weft.kernels.sgmv import granules

EMBEDDING, HEAD = "embed_tokens", "lm_head"

# Has work done on the device, now or later.
Run = Callable[[Callable[[], None]], None]

# How the names of such tensors end; all others are of layers' updates.
_UPDATES = (f"{EMBEDDING}.A", f"{HEAD}.A")
_ROWS = (f"{EMBEDDING}.ids", f"{HEAD}.ids")
_NORM = "norm"


@dataclass(frozen=True)
class Update:
    """What is added: ``scale * v B``, where v are columns of A, or for a head ``x A^T``."""

    a: Matrix  # [rank, inputs]
    b: Matrix  # [rank, outputs]
    scale: float


@dataclass(frozen=True)
class Rows:
    """Rows that take the place of the base's."""

    ids: Tensor  # [N] int64, ascending: their tokens, of all ranks
    here: Span  # which of them are on this rank
    each: int  # how many are on the rank that has most
    matrix: Matrix  # [here, hidden]


@dataclass(frozen=True, eq=False)
class Own:
    """One adapter's, on one rank; no other is the same, even of the same adapter."""

    embedding: Update | None
    head: Update | None
    embedding_rows: Rows | None
    head_rows: Rows | None
    norms: Sequence[tuple[Matrix, Sequence[str]]]  # whose rows are norms, and their names
    tokens: int  # that may be sampled: the base's, and those that it has added


class Writer:
    """Puts matrices into the pages of one adapter, behind what its layers have."""

    def __init__(self, arena: Tensor, pages: Sequence[int], first: int, run: Run) -> None:
        """``arena`` as ``granules.typed`` returns it.

        ``first``: of the granules that are free in every layer; ``run`` has the device's part done.
        """
        self._run = run
        self._arena = arena
        self._granules = arena.flatten(0, 2)
        self._pages = np.array(pages, dtype=np.int64)
        self._first = first
        self._count = 0

    def put(self, matrix: Tensor) -> Matrix:
        """Write [rows, columns], rounded to the arena's type."""
        layers, in_layer, per_page = self._arena.shape[:3]
        groups = -(-matrix.shape[0] // granules.RANKS)
        blocks = -(-matrix.shape[1] // granules.COLUMNS)
        if not groups * blocks:  # the last ranks of a group may have nothing
            return Matrix(self._granules, torch.empty(blocks, groups), *matrix.shape)
        packed = granules.pack(matrix.to(self._arena.dtype))
        index = np.arange(self._count, self._count + len(packed))
        self._count += len(packed)
        layer, granule = index % layers, self._first + index // layers
        page = self._pages[granule // per_page]
        places = torch.from_numpy((layer * in_layer + page) * per_page + granule % per_page)
        on_device = self.to_device(places)
        self._run(partial(_write, self._granules, on_device, packed))
        return Matrix(self._granules, on_device.view(blocks, groups), *matrix.shape)

    def to_device(self, host: Tensor) -> Tensor:
        """Return what is, once ``run`` has done it, the same on the device."""
        if self._arena.device.type == "cpu":
            return host
        made = torch.empty_like(host, device=self._arena.device)
        self._run(partial(_copy, made, host))
        return made


class Reader:
    """Reads the part of one rank of ``size`` from adapters' files."""

    def __init__(self, vocabulary: int, shard: Shard | None, rank: int, size: int) -> None:
        """``vocabulary`` is the whole model's; ``shard`` the rank's part, if it is split."""
        self._rank = rank
        self._size = size
        self._vocabulary = vocabulary
        self._tokens = slice(None) if shard is None else slice(*shard.tokens)

    def load(self, file: AdapterFile, writer: Writer) -> Own | None:
        """Write what an adapter has of its own. None: nothing."""
        names = file.names
        norms = sorted(name for name in names if name.endswith(_NORM))
        if not norms and names.isdisjoint((*_UPDATES, *_ROWS)):
            return None
        head_rows = self._rows(file, names, HEAD, writer)
        tokens = 0 if head_rows is None else int(file.tensor(f"{HEAD}.ids")[-1]) + 1
        return Own(
            self._update(file, EMBEDDING, writer),
            self._update(file, HEAD, writer),
            self._rows(file, names, EMBEDDING, writer),
            head_rows,
            _norms(file, norms, writer),
            max(self._vocabulary, tokens),
        )

    def _update(self, file: AdapterFile, module: str, writer: Writer) -> Update | None:
        if module not in file.scales:
            return None
        everything = slice(None)
        is_embedding = module == EMBEDDING
        a = file.tensor(f"{module}.A")[:, self._tokens if is_embedding else everything]
        b = file.tensor(f"{module}.B")[everything if is_embedding else self._tokens]
        return Update(writer.put(a), writer.put(b.t()), file.scales[module])

    def _rows(self, file: AdapterFile, names: Set[str], module: str, writer: Writer) -> Rows | None:
        if f"{module}.ids" not in names:
            return None
        ids = file.tensor(f"{module}.ids").long()
        here = share(len(ids), self._rank, self._size)
        matrix = writer.put(file.tensor(f"{module}.rows")[here.start : here.end])
        each = share(len(ids), 0, self._size).size
        return Rows(writer.to_device(ids), here, each, matrix)


def _write(arena: Tensor, places: Tensor, packed: Tensor) -> None:
    arena[places] = packed.to(arena.device)


def _copy(made: Tensor, host: Tensor) -> None:
    made.copy_(host)


def _norms(
    file: AdapterFile, names: Sequence[str], writer: Writer
) -> Sequence[tuple[Matrix, Sequence[str]]]:
    """Write norms, those of one size as rows of one matrix."""
    weights = {name: file.tensor(name) for name in names}
    found = []
    for size in sorted({len(weight) for weight in weights.values()}):
        same = [name for name in names if len(weights[name]) == size]
        found.append((writer.put(torch.stack([weights[name] for name in same])), same))
    return found
