"""How the rows of a step attend, as one device computes it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from weft.actors.runner.architecture import Architecture
from weft.actors.runner.rows import HostBatch
from weft.actors.runner.staging import Staging
from weft.kernels.paged_attention import cpu, padded


class AttentionPlan(Protocol):
    """Made once a step, used in every layer."""

    def attend(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """Compute what ``reference.paged_attention`` computes."""
        ...


class Attention(Protocol):
    """Makes plans."""

    def plan(
        self, host: HostBatch, staging: Staging | None = None, *, is_graph: bool = False
    ) -> AttentionPlan:
        """Return the plan of a step, of which what the device reads lies in ``staging``.

        In a graph, every launch has the same shape whatever the step is.
        """
        ...

    def staged_bytes(self) -> int:
        """Return how much of the staging a step takes at most."""
        ...


class NativeAttention:
    """In C, on a CPU."""

    def plan(
        self, host: HostBatch, staging: Staging | None = None, *, is_graph: bool = False
    ) -> cpu.Plan:
        """Return the plan of a step, which stays on the host."""
        return cpu.Plan(host.page_table, host.starts, host.positions)

    def staged_bytes(self) -> int:
        """Return that nothing is staged."""
        return 0


class PaddedAttention:
    """By torch."""

    def __init__(self, architecture: Architecture, page_tokens: int, dtype: torch.dtype) -> None:
        """``dtype`` is that of the queries."""
        self._page_tokens = page_tokens
        self._windows = set(architecture.windows)
        self._dtype = dtype

    def plan(
        self, host: HostBatch, staging: Staging | None = None, *, is_graph: bool = False
    ) -> padded.Plan:
        """Return the plan of a step, which stays on the host."""
        return padded.plan(
            host.page_table,
            host.starts,
            host.positions,
            self._page_tokens,
            windows=self._windows,
            device=torch.device("cpu"),
            dtype=self._dtype,
        )

    def staged_bytes(self) -> int:
        """Return that nothing is staged."""
        return 0
