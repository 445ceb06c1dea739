"""Steps on a device that is the host: each is computed when it is launched."""

from __future__ import annotations

import time
from typing import NamedTuple, Protocol

import torch

from weft.actors.runner import recorded
from weft.actors.runner.arena import Arena
from weft.actors.runner.attention import Attention
from weft.actors.runner.engine import Done, Launched
from weft.actors.runner.limits import Limits
from weft.actors.runner.loads import Loads
from weft.actors.runner.lora import HostLora, LoraSlots
from weft.actors.runner.model import Batch, Model
from weft.actors.runner.own_step import Logits, OwnStep
from weft.actors.runner.recorded import Recorded
from weft.actors.runner.rows import HostBatch, RowTable
from weft.actors.runner.sampler import Drawn, Sampler
from weft.kernels.collectives.reference import Collectives
from weft.runtime.messages import AdapterLoad, Join, Step, StepDone


class Parts(NamedTuple):
    """What a device computes with."""

    model: Model
    arena: Arena
    lora: LoraSlots
    attention: Attention
    group: Collectives


class Executor(Protocol):
    """Computes steps, in the order in which they are launched."""

    def make_way(self, step: Step) -> None:
        """Wait for loads whose slot or pages a step gives to others, before it is applied."""
        ...

    def load(self, load: AdapterLoad) -> None:
        """Map an adapter's file, and put its weights into its pages before they are used."""
        ...

    @property
    def loading(self) -> list[int]:
        """Slots for whose adapters a step would wait."""
        ...

    def settle(self) -> None:
        """Wait for every load."""
        ...

    def leave(self, row: int) -> None:
        """Forget how a row is sampled."""
        ...

    def join(self, join: Join) -> None:
        """Take in how a row is sampled."""
        ...

    def launch(self, number: int, host: HostBatch, started_ns: int) -> Launched:
        """Begin to compute step ``number``, which was begun with at ``started_ns``."""
        ...


class Eager:
    """Feeds the rows' last tokens by way of the host."""

    def __init__(self, parts: Parts, rows: RowTable, limits: Limits) -> None:
        self._parts = parts
        self._rows = rows
        self._loads = Loads(parts.lora)
        self._sampler = Sampler()
        self._recorded: Recorded | None = None
        if recorded.is_possible(parts.model, parts.group):
            assert isinstance(parts.lora.kernel, HostLora)
            self._recorded = Recorded(parts.model, parts.arena, parts.lora.kernel, limits)

    def make_way(self, step: Step) -> None:
        """Wait for loads whose slot or pages a step gives to others."""
        self._loads.make_way(step)

    def load(self, load: AdapterLoad) -> None:
        """Map an adapter's file, and have its weights copied while the step is computed."""
        self._loads.begin(load)

    @property
    def loading(self) -> list[int]:
        """Slots whose adapters are still being copied."""
        return self._loads.under_way

    def settle(self) -> None:
        """Wait for every load."""
        self._loads.wait()

    def leave(self, row: int) -> None:
        """Forget how a row is sampled."""
        self._sampler.leave(row)

    def join(self, join: Join) -> None:
        """Take in how a row is sampled."""
        self._sampler.join(join)

    def launch(self, number: int, host: HostBatch, started_ns: int) -> Done:
        """Compute a step."""
        self._loads.wait(host.adapter_slots)
        parts = self._parts
        own = parts.model.own(parts.lora.own(host, torch.from_numpy))
        if self._recorded is None:
            logits = self._forward(host, own)
        else:
            logits = self._recorded.forward(host, own)
        rows = host.sampled_rows
        if logits is None:
            drawn = Drawn(torch.empty(len(rows), dtype=torch.int64), [], [])
        else:
            positions = host.sampled_positions.tolist()
            drawn = self._sampler.sample(logits.base, rows.tolist(), positions, logits.wider)
        parts.group.broadcast(drawn.tokens)
        self._rows.feed(rows, drawn.tokens.numpy())
        elapsed_us = (time.perf_counter_ns() - started_ns) // 1000
        return Done(
            StepDone(
                number,
                drawn.tokens.tolist(),
                drawn.failed,
                drawn.logprobs,
                elapsed_us,
                self.loading,
            )
        )

    def _forward(self, host: HostBatch, own: OwnStep | None) -> Logits | None:
        """Return the logits of a step's sampled tokens, one operation after the other."""
        parts, tensor = self._parts, torch.from_numpy
        batch = Batch(
            tokens=tensor(host.tokens),
            positions=tensor(host.positions),
            kv_slots=tensor(host.kv_slots),
            attention=parts.attention.plan(host),
            update=parts.lora.kernel.plan(host),
            sampled=tensor(host.sampled),
            own=own,
        )
        return parts.model.forward(batch, parts.arena.kv)
