"""What a device does before it serves: the largest steps, and its graphs.

Kernels are compiled by it, libraries take the memory that they keep, and it shows how much is left
for pages.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from weft.actors.runner.ahead import Ahead
from weft.actors.runner.forms import Form, Kind
from weft.actors.runner.limits import Limits
from weft.actors.runner.rows import HostBatch
from weft.runtime.messages import Join, RowSampling

# Beyond it, attention is divided among programs and merged: a kernel of its own.
LONG_POSITION = 1500

# As many as an API asks for at most: the memory for them grows with the vocabulary, not with this.
LOGPROBS = 20

_SAMPLING = RowSampling(
    temperature=0.7, top_p=0.9, top_k=20, min_p=0.1, seed=0, logprobs=LOGPROBS
)  # fmt: skip

# Graphs captured to learn what one takes.
GRAPHS_MEASURED = 4


class Scratch(NamedTuple):
    """The page that all these steps read and write."""

    page: int
    tokens: int


def run_largest(ahead: Ahead, limits: Limits, scratch: Scratch) -> None:
    """Compute steps that need as much memory as any, and every kernel."""
    context = limits.row_pages * scratch.tokens
    many, left = [], limits.tokens
    for row in range(limits.rows):
        many.append(min(context, left - (limits.rows - 1 - row)))
        left -= many[-1]
    few = [min(8, context, many[0])] + [1] * (limits.rows - 1)
    late = max(0, min(LONG_POSITION, context - few[0]))
    for counts, first in ((many, 0), (few, late)):
        for adapters in (limits.row_adapters, 1, 0):
            host = blank(counts, first, scratch, adapters=adapters)
            for row in range(limits.rows):
                ahead.join(Join(row, [], 0, [], _SAMPLING, 0, 0, None))
            ahead.launch(0, host, 0).collect()
            for row in range(limits.rows):
                ahead.leave(row)


def capture(ahead: Ahead, scratch: Scratch, kinds: Sequence[Kind]) -> float:
    """Make graphs of these kinds; return how many seconds it took."""
    started = time.perf_counter()
    for kind in kinds:
        adapters = int(kind.form is not Form.BASE)
        host = blank([1], 0, scratch, adapters=adapters, samples=False)
        ahead.capture(kind, host)
    return time.perf_counter() - started


def memory_needed(build: Callable[[], Ahead], limits: Limits, scratch: Scratch) -> int:
    """Return how many bytes steps and graphs take on the current device, beside weights and arena.

    ``build`` makes the device's side on a small arena, which is given back.
    """
    at_first = _free()
    ahead = build()
    run_largest(ahead, limits, scratch)
    # The first also takes what all of them share.
    kinds = ahead.graphs.kinds
    capture(ahead, scratch, kinds[:1])
    with_one = _free()
    measured = kinds[1 : 1 + GRAPHS_MEASURED]
    capture(ahead, scratch, measured)
    with_some = _free()
    each = (with_one - with_some) / max(1, len(measured))
    needed = at_first - with_some + each * len(kinds[1 + len(measured) :])
    del ahead
    gc.collect()
    torch.cuda.empty_cache()
    return math.ceil(needed)


def _free() -> int:
    torch.cuda.synchronize()
    return torch.cuda.mem_get_info()[0]


def blank(
    counts: Sequence[int],
    first: int,
    scratch: Scratch,
    *,
    adapters: int,
    samples: bool = True,
) -> HostBatch:
    """Return a step of rows 0, 1, … with so many tokens each, from position ``first`` on.

    ``adapters`` is how many a row has; they are all slot 0's.
    """
    starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    positions = first + np.concatenate([np.arange(count) for count in counts]).astype(np.int64)
    pages = int(positions.max()) // scratch.tokens + 1
    rows = np.arange(len(counts) if samples else 0, dtype=np.int64)
    return HostBatch(
        tokens=np.zeros_like(positions),
        positions=positions,
        kv_slots=np.full_like(positions, scratch.page * scratch.tokens),
        starts=starts,
        page_table=np.full((len(counts), pages), scratch.page, dtype=np.int64),
        lora_starts=starts[[0, -1]] if adapters else starts[:1],
        lora_slots=np.zeros((1, adapters) if adapters else (0, 1), dtype=np.int64),
        lora_weights=np.ones((1, adapters) if adapters else (0, 1), dtype=np.float32),
        sampled=starts[1:] - 1,
        sampled_rows=rows,
        sampled_positions=positions[starts[1:] - 1][: len(rows)] + 1,
    )
