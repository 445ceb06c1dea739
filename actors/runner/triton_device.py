"""What a GPU computes with: kernels in Triton, whose plans lie in the staging."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from weft.actors.runner.architecture import Architecture
from weft.actors.runner.forms import Form, Kind
from weft.actors.runner.limits import Limits
from weft.actors.runner.lora import LoraUpdate, no_update
from weft.actors.runner.rows import HostBatch
from weft.actors.runner.staging import Staging
from weft.kernels.paged_attention import triton as attention
from weft.kernels.paged_attention.schedule import ITEM_FIELDS, MERGE_FIELDS, Ints32
from weft.kernels.sgmv import triton as sgmv
from weft.kernels.sgmv.granules import Tables
from weft.kernels.sgmv.plan import Counts, Planner


class TritonAttention:
    """Makes the plans of attention."""

    def __init__(
        self,
        architecture: Architecture,
        limits: Limits,
        page_tokens: int,
        compute_dtype: torch.dtype,
        *,
        device: torch.device,
        processors: int,
    ) -> None:
        """``processors`` are the device's multiprocessors."""
        self._limits = limits
        self._plan = partial(
            attention.Plan,
            page_tokens=page_tokens,
            heads=architecture.heads,
            kv_heads=architecture.kv_heads,
            device=device,
            processors=processors,
        )
        # One for all graphs, since they share its memory for partial results.
        self._of_graphs: attention.Plan | None = None

    def plan(
        self, host: HostBatch, staging: Staging | None = None, *, is_graph: bool = False
    ) -> attention.Plan:
        """Return the plan of a step."""
        assert staging is not None

        def place(count: int, room: int) -> tuple[Ints32, Tensor]:
            field = staging.take(np.int32, count, room)
            return field.host.view(np.int32), field.tensor

        layout = host.page_table, host.starts, host.positions
        if not is_graph:
            return self._plan(*layout, place=place)
        if self._of_graphs is None:
            room = attention.Room(self._limits.rows, self._limits.row_pages)
            self._of_graphs = self._plan(*layout, place=place, room=room)
        else:
            self._of_graphs.fill(*layout)
        return self._of_graphs

    def staged_bytes(self) -> int:
        """Return how much of the staging a step takes at most."""
        most = self._limits.tokens + attention.PARTIALS_MAX
        ints = most * (2 * len(ITEM_FIELDS) + len(MERGE_FIELDS))
        ints += self._limits.entries * self._limits.row_pages
        return 4 * (ints + 6 * attention.ALIGNMENT)


class TritonLora:
    """Makes the updates by adapters."""

    def __init__(
        self,
        arena: Tensor,
        tables: Tables,
        widths: Sequence[Sequence[int]],
        *,
        limits: Limits,
        compute_dtype: torch.dtype,
        processors: int,
    ) -> None:
        """The first three as for the kernel. ``processors`` are the device's multiprocessors."""
        self._kernel = sgmv.PagedLora(
            arena,
            tables,
            widths,
            sgmv.Limits(
                tokens=limits.tokens,
                segments=limits.adapters,
                rank=limits.rank,
                row_adapters=limits.row_adapters,
                segments_of_sums=limits.rows,
            ),
            compute_dtype=compute_dtype,
            processors=processors,
        )
        self._limits = limits
        self._planners: dict[tuple[int, bool], Planner] = {}

    def stage(self, slot: int) -> Callable[[], None]:
        """Return what brings a slot's tables to the device."""
        return self._kernel.stage(slot)

    @property
    def forms(self) -> Sequence[Form]:
        """Return all."""
        return tuple(Form)

    def form(self, host: HostBatch) -> Form:
        """Return which of them a step has."""
        if not host.has_adapters:
            return Form.BASE
        is_plain = host.row_adapters == 1 and len(host.lora_slots) <= self._limits.adapters
        return Form.PLAIN if is_plain else Form.SUMS

    def plan(
        self, host: HostBatch, staging: Staging | None = None, graph: Kind | None = None
    ) -> LoraUpdate:
        """Return the update of a step."""
        assert staging is not None
        kind = graph or Kind(self._tokens(len(host.tokens)), self.form(host))
        if kind.form is Form.BASE:
            return no_update
        planner = self._planner(kind.rows, has_sums=kind.form is Form.SUMS)
        field = staging.take(np.int32, planner.bounds.ints)
        counts: Counts = planner.lay_out(
            field.host.view(np.int32),
            host.lora_starts,
            host.lora_slots,
            self._kernel.groups,
            host.lora_weights,
        )
        if graph is not None:
            counts = planner.bounds
        return partial(self._kernel.add, plan=sgmv.Plan(field.tensor, counts, planner))

    def staged_bytes(self) -> int:
        """Return how much of the staging a step takes at most."""
        sizes = {self._tokens(count) for count in (1, self._limits.tokens)}
        return 4 * max(
            self._planner(tokens, has_sums=has).bounds.ints
            for tokens in sizes
            for has in (False, True)
        )

    def _tokens(self, count: int) -> int:
        """Return for how many tokens to plan a step that is not in a graph."""
        few = min(sgmv.TOKENS_FEW, self._limits.tokens)
        return few if count <= few else self._limits.tokens

    def _planner(self, tokens: int, *, has_sums: bool) -> Planner:
        kind = tokens, has_sums
        if kind not in self._planners:
            self._planners[kind] = self._kernel.planner(tokens, has_sums=has_sums)
        return self._planners[kind]
