"""Decode steps as CUDA graphs: one for each of some numbers of rows, and form of their adapters.

A step's kernels are launched by one call then, instead of hundreds. The eager path is the
definition: a graph is what it does for as many rows as the graph has, of which the last ones are
padding. Padding feeds token 0 at position 0, writes to a page that is nobody's, attends to nothing
and is not sampled.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor

from weft.actors.runner.forms import Form, Kind
from weft.actors.runner.model import Batch

# Up to here sizes are 8 apart, from here 32.
FINE_ROWS = 256

# Logits of a batch: None on all ranks of a group but the first.
Compute = Callable[[Batch], Tensor | None]


class Record(Protocol):
    """Makes something that computes again what ``compute`` does now, of a batch like this one."""

    def __call__(self, compute: Compute, batch: Batch) -> Compute:
        """Return it. Its batches lie where this one does, and its result is overwritten by each."""
        ...


class Graphs:
    """The graphs of a device, by their kind."""

    def __init__(
        self, compute: Compute, rows_max: int, record: Record | None, forms: Iterable[Form]
    ) -> None:
        """Without ``record`` there are none."""
        self._compute = compute
        self._record = record
        self._sizes: dict[Form, list[int]] = {}
        if record is not None:
            self._sizes = {form: sizes(rows_max, form) for form in forms}
        self._recorded: dict[Kind, Compute] = {}

    @property
    def kinds(self) -> list[Kind]:
        """All that are wanted: those of most rows first, whose memory then serves the others."""
        kinds = (Kind(rows, form) for form, found in self._sizes.items() for rows in found)
        return sorted(kinds, reverse=True)

    def kind(self, rows: int, form: Form) -> Kind | None:
        """Return the least graph that holds so many rows; None: there is none yet."""
        found = self._sizes.get(form, [])
        index = bisect.bisect_left(found, rows)
        if index == len(found):
            return None
        kind = Kind(found[index], form)
        return kind if kind in self._recorded else None

    def record(self, kind: Kind, batch: Batch) -> None:
        """Make a graph of a batch of this kind."""
        assert self._record is not None
        self._recorded[kind] = self._record(self._compute, batch)

    def run(self, kind: Kind | None, batch: Batch) -> Tensor | None:
        """Compute a batch by its graph; None: eagerly."""
        return self._compute(batch) if kind is None else self._recorded[kind](batch)


def sizes(rows_max: int, form: Form) -> list[int]:
    """Return the numbers of rows that have a graph, ascending, up to the most of a step.

    Each takes a moment at start and some memory; a step computes at most 7 rows more than it has,
    beyond 256 rows at most 31, which costs little beside reading the weights. Steps with sums are
    fewer: they compute up to twice their rows, and need a third of the graphs.
    """
    found = [1, 2, 4, *range(8, FINE_ROWS, 8), *range(FINE_ROWS, rows_max, 32)]
    if form is Form.SUMS:
        found = [1 << power for power in range(rows_max.bit_length())]
    return [*(rows for rows in found if rows < rows_max), rows_max]


class CudaRecord:
    """Captures CUDA graphs, which share one pool of memory: only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, compute: Compute, batch: Batch) -> Compute:
        """Capture ``compute``, after having it compile and allocate what it keeps."""
        compute(batch)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # A collective's watchdog may ask CUDA something meanwhile: it is another thread.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            logits = compute(batch)
        place = batch.tokens.data_ptr()

        def replay(batch: Batch) -> Tensor | None:
            assert batch.tokens.data_ptr() == place, "a step does not lie where its graph reads"
            graph.replay()
            return logits

        return replay
