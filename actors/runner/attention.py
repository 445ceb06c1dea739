"""How the rows of a step attend, as one device computes it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
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

    def plan(self, host: HostBatch) -> AttentionPlan:
        """Return the plan of a step that is computed at once."""
        ...

    def stage(self, host: HostBatch, staging: Staging, *, is_graph: bool) -> AttentionPlan:
        """Return the plan of a step that is staged.

        In a graph, every launch has the same shape whatever the step is.
        """
        ...


class NativeAttention:
    """In C, on a CPU."""

    def plan(self, host: HostBatch) -> cpu.Plan:
        """Return the plan of a step."""
        return cpu.Plan(host.page_table, host.starts, host.positions)

    def stage(self, host: HostBatch, staging: Staging, *, is_graph: bool) -> cpu.Plan:
        """Return the plan of a step, which stays on the host."""
        return self.plan(host)


class PaddedAttention:
    """By torch."""

    def __init__(self, architecture: Architecture, page_tokens: int, dtype: torch.dtype) -> None:
        """``dtype`` is that of the queries."""
        self._page_tokens = page_tokens
        self._windows = set(architecture.windows)
        self._dtype = dtype

    def plan(self, host: HostBatch) -> padded.Plan:
        """Return the plan of a step."""
        return padded.plan(
            host.page_table,
            host.starts,
            host.positions,
            self._page_tokens,
            windows=self._windows,
            device=torch.device("cpu"),
            dtype=self._dtype,
        )

    def stage(self, host: HostBatch, staging: Staging, *, is_graph: bool) -> padded.Plan:
        """Return the plan of a step, which stays on the host."""
        return self.plan(host)
