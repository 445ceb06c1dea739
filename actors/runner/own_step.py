"""A step's rows of adapters that have more than updates of layers: see ``own.py``.

Such a step is computed eagerly, these rows one adapter after the other, and whatever is computed of
the base for them is replaced. The other rows stay as they are, bit for bit on a CPU. The ranks of
a group call everything in the same order, for they have the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from weft.actors.runner.operations import Operations
from weft.actors.runner.own import Own
from weft.actors.runner.rows import HostBatch
from weft.actors.shards import Span
from weft.kernels.collectives.reference import Collectives
from weft.kernels.paged_matrix.reference import columns_at, rows_at

Ints = NDArray[np.int64]

# Logits are widened by so many at once: kernels on a GPU are compiled for each vocabulary.
_TOKENS_AT_ONCE = 1024

# Brings indices of a step to the device.
Put = Callable[[Ints], Tensor]


class Wider(NamedTuple):
    """Rows that have more tokens than the base."""

    which: list[int]  # of the sampled rows
    logits: Tensor  # [rows, their tokens] float32


class Logits(NamedTuple):
    """Of a step's sampled rows."""

    base: Tensor  # [R, vocabulary] float32, of the base's tokens
    wider: Sequence[Wider] = ()

    def padded(self) -> Tensor:
        """Return all as one tensor: as wide as the widest, -inf beyond a row's own."""
        if not self.wider:
            return self.base
        more = max(rows.logits.shape[1] for rows in self.wider) - self.base.shape[1]
        room = -(-more // _TOKENS_AT_ONCE) * _TOKENS_AT_ONCE
        logits = F.pad(self.base, (0, room), value=float("-inf"))
        for rows in self.wider:
            logits[rows.which, : rows.logits.shape[1]] = rows.logits
        return logits


class Segment(NamedTuple):
    """One adapter's rows, which may have others too."""

    own: Own
    weight: float  # of its updates
    rows: slice  # of the step's tokens
    among: list[int]  # which of the sampled rows are of it
    sampled: Tensor  # [r] int64, the same on the device


class OwnStep:
    """What the adapters of one step have of their own."""

    def __init__(
        self,
        segments: Sequence[Segment],
        operations: Operations,
        group: Collectives,
        compute_dtype: torch.dtype,
    ) -> None:
        self._segments = segments
        self._do = operations
        self._group = group
        self._dtype = compute_dtype

    def embed(self, x: Tensor, tokens: Tensor, here: Span) -> None:
        """Change the embedded tokens, x [T, hidden]; the sum of all ranks' is what is meant.

        tokens: [T] int64; ``here``: those that this rank embeds.
        """
        for segment in self._segments:
            update, rows = segment.own.embedding, segment.own.embedding_rows
            own, ids = x[segment.rows], tokens[segment.rows]
            if update is not None and here.size:
                index = ids - here.start
                is_here = (index >= 0) & (index < here.size)
                v = columns_at(update.a, index.where(is_here, 0)).to(x.dtype)
                v.masked_fill_(~is_here[:, None], 0.0)
                own += segment.weight * update.scale * self._do.times(update.b, v)
            if rows is not None:
                index = torch.searchsorted(rows.ids, ids).clamp_(max=len(rows.ids) - 1)
                is_own = rows.ids[index] == ids
                index -= rows.here.start
                is_here = is_own & (index >= 0) & (index < rows.here.size)
                own.masked_fill_(is_own[:, None], 0.0)
                if rows.here.size:
                    found = rows_at(rows.matrix, index.where(is_here, 0)).to(x.dtype)
                    own += found.masked_fill_(~is_here[:, None], 0.0)

    def norm(self, normed: Tensor, x: Tensor, name: str, epsilon: float) -> None:
        """Replace what a norm makes of x, [T, size] or [T, heads, size], where it is an own one."""
        for rows, weight in self.norms.get(name, ()):
            normed[rows] = self._do.rms_norm(x[rows], weight, epsilon)

    def update_head(self, logits: Tensor, x: Tensor) -> None:
        """Add to this rank's logits [R, its tokens and more] of sampled rows x [R, hidden]."""
        for segment in self._segments:
            update, sampled = segment.own.head, segment.sampled
            if update is not None and update.b.columns and len(sampled):
                v = self._do.times_transposed(update.a, x[sampled])
                found = self._do.times(update.b, v)
                logits[sampled, : update.b.columns] += segment.weight * update.scale * found

    def replace_head(self, logits: Tensor | None, x: Tensor) -> list[Wider]:
        """Change the logits [R, vocabulary] of own rows; return those with tokens that are added.

        ``logits`` are None on all ranks but the first, and so nothing is returned there.
        """
        wider = []
        for segment in self._segments:
            rows, sampled = segment.own.head_rows, segment.sampled
            if rows is None or not len(sampled):
                continue
            part = x.new_zeros(len(sampled), 0)
            if rows.here.size:
                part = self._do.times_transposed(rows.matrix, x[sampled])
            if part.shape[1] < rows.each:
                part = F.pad(part, (0, rows.each - part.shape[1]))
            found = self._group.gather(part.float())
            if logits is None or found is None:
                continue
            known = logits.shape[1]
            if segment.own.tokens == known:
                logits[sampled[:, None], rows.ids] = found[:, : len(rows.ids)]
                continue
            wide = logits.new_full((len(sampled), segment.own.tokens), float("-inf"))
            wide[:, :known] = logits[sampled]
            wide[:, rows.ids] = found[:, : len(rows.ids)]
            wider.append(Wider(segment.among, wide))
        return wider

    @property
    def normed(self) -> list[tuple[Own, slice]]:
        """Which adapters have norms, and their rows of the step."""
        return [(each.own, each.rows) for each in self._segments if each.own.norms]

    @cached_property
    def norms(self) -> dict[str, list[tuple[slice, Tensor]]]:
        """By name, rows of the step that have a norm of their own, and its weight, [size]."""
        found: dict[str, list[tuple[slice, Tensor]]] = {}
        for segment in self._segments:
            for matrix, names in segment.own.norms:
                rows = torch.arange(len(names), device=matrix.granules.device)
                weights = rows_at(matrix, rows).to(self._dtype)
                for name, weight in zip(names, weights, strict=True):
                    found.setdefault(name, []).append((segment.rows, weight))
        return found


def of_step(owns: Sequence[Own | None], host: HostBatch, put: Put) -> list[Segment]:
    """Return the segments of adapters that have something of their own.

    Args:
        owns: of each slot's adapter.
        host: the step, in whose order of adapters a row's are added.
        put: brings indices of rows to the device.
    """
    found = []
    for n in range(host.row_adapters):
        for i, slot in enumerate(host.lora_slots[:, n].tolist()):
            own = None if slot < 0 else owns[slot]
            if own is not None:
                first, last = host.lora_starts[i : i + 2].tolist()
                among = np.flatnonzero((host.sampled >= first) & (host.sampled < last))
                weight = float(host.lora_weights[i, n])
                rows = slice(first, last)
                found.append(Segment(own, weight, rows, among.tolist(), put(among)))
    return found
