"""Steps on a device that works beside the host.

A step is laid out while the device computes the one before. It needs nothing that the host must
wait for: what a row decodes is found on the device, in a table of the rows' last tokens. It goes
there in one copy, and its tokens come back in one.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from weft.actors.runner.device_sampler import STAGED_BYTES, DeviceSampler, Wanted
from weft.actors.runner.eager import Parts
from weft.actors.runner.engine import STEPS_MAX
from weft.actors.runner.forms import Kind
from weft.actors.runner.graphs import Graphs, Record
from weft.actors.runner.limits import Limits
from weft.actors.runner.loads import Loads, Streams
from weft.actors.runner.model import Batch
from weft.actors.runner.rows import HostBatch
from weft.actors.runner.staging import ALIGNMENT, Staging
from weft.actors.runner.stream import Mark, Stream
from weft.kernels.sample import reference
from weft.runtime.messages import AdapterLoad, Join, Step, StepDone

# Arrays that a step stages beside its plans: tokens, positions, places of KV, sampled tokens, rows.
_TOKEN_BYTES, _ROW_BYTES, _ARRAYS = 3 * 8, 2 * 8, 16


class AheadMeans(NamedTuple):
    """What a device that works beside the host has for it."""

    stream: Stream  # of steps
    copies: Stream  # of adapters
    record: Callable[[], Record] | None  # None: no graphs


class Staged(NamedTuple):
    """One step, laid out."""

    batch: Batch
    wanted: Wanted
    rows: Tensor  # [R] int64, that sample


class Ahead:
    """Feeds the rows' last tokens without the host."""

    def __init__(
        self, parts: Parts, limits: Limits, device: torch.device, means: AheadMeans
    ) -> None:
        """The arena's last page is for what padding writes."""
        self._parts = parts
        self._device = device
        self._stream = means.stream
        self._loads = Loads(parts.lora, Streams(means.stream, means.copies), device)
        sample = parts.model.operations.sample or reference.sample
        self._sampler = DeviceSampler(
            parts.model.architecture.vocabulary, limits.rows, device, sample
        )
        self._scratch_slot = (parts.arena.pages - 1) * parts.arena.shape.tokens
        size = limits.tokens * _TOKEN_BYTES + limits.rows * (_ROW_BYTES + STAGED_BYTES)
        size += parts.lora.kernel.staged_bytes() + parts.attention.staged_bytes()
        # Of adapters with own modules.
        size += limits.rows * limits.row_adapters * (8 + ALIGNMENT)
        self._staging = Staging(size + _ARRAYS * ALIGNMENT, device)
        self._last_tokens = torch.zeros(limits.rows, dtype=torch.int64, device=device)
        record = None if means.record is None else means.record()
        self.graphs = Graphs(self._compute, limits.rows, record, parts.lora.kernel.forms)
        self._under_way: deque[Running] = deque()

    def make_way(self, step: Step) -> None:
        """Let the device wait for loads whose slot or pages a step gives to others."""
        self._loads.make_way(step)

    def load(self, load: AdapterLoad) -> None:
        """Map an adapter's file, and have its weights copied beside the steps that follow."""
        self._loads.begin(load)

    @property
    def loading(self) -> list[int]:
        """Slots whose adapters are still being read, or copied by the device."""
        return self._loads.under_way

    def settle(self) -> None:
        """Wait until every load is in the device's hands."""
        self._loads.wait()

    def leave(self, row: int) -> None:
        """Forget how a row is sampled."""
        self._sampler.leave(row)

    def join(self, join: Join) -> None:
        """Take in how a row is sampled."""
        self._sampler.join(join)

    def launch(self, number: int, host: HostBatch, started_ns: int) -> Running:
        """Lay out a step, and have it computed after those that are under way."""
        self._loads.wait(host.adapter_slots)
        while self._under_way and self._under_way[0].is_finished:
            self._under_way.popleft()
        assert len(self._under_way) < STEPS_MAX, f"{len(self._under_way)} steps are under way"
        if self._sampler.needs_history(host.sampled_rows):
            for other in self._under_way:
                other.collect()
        kind = self._kind(host)
        staged = self._lay_out(host, kind)
        send = self._staging.sender()
        before = self._under_way[-1] if self._under_way else None
        running = Running(number, self._sampler, self._loads, staged.wanted, started_ns, before)

        def work() -> None:
            send()
            logits = self.graphs.run(kind, staged.batch)
            running.told = self._to_host(self._sampled(logits, staged))

        self._stream.run(work)
        running.mark = self._stream.mark()
        self._under_way.append(running)
        return running

    def capture(self, kind: Kind, host: HostBatch) -> None:
        """Make a graph by a step of its kind, which samples nothing."""
        staged = self._lay_out(host, kind)
        self._staging.sender()()
        self.graphs.record(kind, staged.batch)

    def _kind(self, host: HostBatch) -> Kind | None:
        """Return which graph computes a step; None: none does."""
        lora = self._parts.lora
        if not host.is_decode or lora.has_own(host):
            return None
        return self.graphs.kind(len(host.tokens), lora.kernel.form(host))

    def _lay_out(self, host: HostBatch, kind: Kind | None) -> Staged:
        """Lay out a step, with padding for a graph of this kind."""
        staging, rows = self._staging, kind.rows if kind else None
        staging.begin()
        room = rows or len(host.sampled_rows)
        sampled_rows = staging.put(host.sampled_rows, room)[: len(host.sampled_rows)]
        wanted = self._sampler.stage(host.sampled_rows, host.sampled_positions, staging, room)
        batch = Batch(
            tokens=staging.put(host.tokens, rows),
            positions=staging.put(host.positions, rows),
            kv_slots=staging.put(host.kv_slots, rows, self._scratch_slot),
            sampled=staging.put(host.sampled, rows),
            own=self._parts.model.own(self._parts.lora.own(host, staging.put)),
            update=self._parts.lora.kernel.plan(host, staging, kind),
            # Last, so that the part of its page table that a step does not use is not copied.
            attention=self._parts.attention.plan(host, staging, is_graph=rows is not None),
        )
        return Staged(batch, wanted, sampled_rows)

    def _compute(self, batch: Batch) -> Tensor | None:
        """Return the logits of a staged step, whose decodes feed the rows' last tokens."""
        staged = batch.tokens
        tokens = torch.where(staged < 0, self._last_tokens[(~staged).clamp_(min=0)], staged)
        logits = self._parts.model.forward(
            dataclasses.replace(batch, tokens=tokens), self._parts.arena.kv
        )
        return None if logits is None else logits.padded()

    def _sampled(self, logits: Tensor | None, staged: Staged) -> Tensor:
        """Draw the step's tokens, keep them for the next one, and return what to tell the host."""
        rows = staged.rows
        if logits is None:
            told = tokens = torch.empty(len(rows), dtype=torch.int64, device=self._device)
        else:
            tokens, told = self._sampler.draw(logits[: len(rows)], staged.wanted)
        self._parts.group.broadcast(tokens)
        self._last_tokens.index_copy_(0, rows, tokens)
        return told

    def _to_host(self, told: Tensor) -> Tensor:
        pinned = self._device.type == "cuda"
        host = torch.empty(told.shape, dtype=told.dtype, pin_memory=pinned)
        return host.copy_(told, non_blocking=True)


class Running:
    """A step that the device computes."""

    def __init__(
        self,
        number: int,
        sampler: DeviceSampler,
        loads: Loads,
        wanted: Wanted,
        started_ns: int,
        before: Running | None,
    ) -> None:
        """``before`` is the step that the device computes first."""
        self._number = number
        self._sampler = sampler
        self._loads = loads
        self._wanted = wanted
        self._started_ns = started_ns
        self._before = before
        self._ended_ns = 0
        self._answer: StepDone | None = None
        self.told: Tensor | None = None  # in host memory, once ``mark`` is past
        self.mark: Mark | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the host has taken in what the device tells."""
        return self._answer is not None

    @property
    def is_done(self) -> bool:
        """Whether its answer can be had without waiting."""
        assert self.mark is not None
        return self.is_finished or self.mark.is_past

    def collect(self) -> StepDone:
        """Wait for the device, and return the answer."""
        if self._answer is None:
            assert self.mark is not None
            self.mark.wait()
            assert self.told is not None
            told = self._sampler.told(self.told.numpy(), self._wanted)
            self._ended_ns = time.perf_counter_ns()
            if self._before is not None:
                self._started_ns = max(self._started_ns, self._before._ended_ns)
                self._before = None
            elapsed_us = (self._ended_ns - self._started_ns) // 1000
            self._answer = StepDone(
                self._number,
                told.tokens,
                told.failed,
                told.logprobs,
                elapsed_us,
                self._loads.under_way,
            )
        return self._answer
