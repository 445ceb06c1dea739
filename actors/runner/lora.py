"""Adapters on the device: mixed ranks, any subset of the linear modules."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, pairwise, starmap
from typing import Protocol

from torch import Tensor

from weft.actors.runner.adapter_file import AdapterFile
from weft.actors.runner.affine import Base, of_bias, of_magnitude
from weft.actors.runner.architecture import Architecture
from weft.actors.runner.forms import Form, Kind
from weft.actors.runner.own import Own, Reader, Writer
from weft.actors.runner.own_step import Put, Segment, of_step
from weft.actors.runner.rows import HostBatch
from weft.actors.runner.staging import Staging
from weft.actors.runner.stream import Run, at_once
from weft.actors.shards import Span
from weft.kernels.sgmv import cpu, packing, segments
from weft.kernels.sgmv.granules import AFFINE_BLOCKS, COLUMNS, RANKS, Module, Tables
from weft.kernels.sgmv.segments import Segments
from weft.runtime.histogram import Histogram
from weft.runtime.messages import LOAD_BUCKETS_S

# Modules that share an input are one site: their A matrices are multiplied together.
SITES = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
QKV, OUT, GATE_UP, DOWN = range(len(SITES))


# Adds the updates of one step's batch: y [T, out of the site], x [T, in], layer, site's index.
LoraUpdate = Callable[[Tensor, Tensor, int, int], None]


class LoraKernel(Protocol):
    """The update as one device computes it."""

    @property
    def forms(self) -> Sequence[Form]:
        """Those that differ on this device, of all."""
        ...

    def form(self, host: HostBatch) -> Form:
        """Return which of them a step has."""
        ...

    def stage(self, slot: int) -> Callable[[], None]:
        """Hear that the tables of a slot have changed; return what brings them to the device."""
        ...

    def plan(
        self, host: HostBatch, staging: Staging | None = None, graph: Kind | None = None
    ) -> LoraUpdate:
        """Return the update of a step, of which what the device reads lies in ``staging``.

        ``graph``: which it is part of; every launch of that has the same shape.
        """
        ...

    def staged_bytes(self) -> int:
        """Return how much of the staging a step takes at most."""
        ...


class HostLora:
    """For the kernels of a CPU, which find everything in host memory."""

    def __init__(self, arena: Tensor, tables: Tables, widths: Sequence[Sequence[int]]) -> None:
        """``arena`` as ``granules.typed`` returns it; ``widths``: by site, columns of each part."""
        make = segments.PagedLora if cpu.library() is None else cpu.PagedLora
        self._kernel = make(arena, tables, widths)

    def stage(self, slot: int) -> Callable[[], None]:
        """Return what does nothing: these are the tables that the kernel reads."""
        return _nothing

    def update_of(self, segments: Segments) -> LoraUpdate:
        """Return the update of the steps that ``segments`` will be those of; for a program."""
        return partial(self._kernel.add, segments=segments)

    def reserve(self, host: HostBatch) -> None:
        """Make room for a step; before each run of a program."""
        self._kernel.reserve(len(host.tokens), host.row_adapters)

    @property
    def forms(self) -> Sequence[Form]:
        """Return that sums are none of their own: nothing is laid out in advance."""
        return Form.BASE, Form.PLAIN

    def form(self, host: HostBatch) -> Form:
        """Return which of them a step has."""
        return Form.PLAIN if host.has_adapters else Form.BASE

    def plan(
        self, host: HostBatch, staging: Staging | None = None, graph: Kind | None = None
    ) -> LoraUpdate:
        """Return the update of a step."""
        if not host.has_adapters:
            return no_update
        return self.update_of(Segments(host.lora_starts, host.lora_slots, host.lora_weights))

    def staged_bytes(self) -> int:
        """Return that nothing is staged."""
        return 0


def _nothing() -> None:
    """Do nothing."""


def no_update(y: Tensor, x: Tensor, layer: int, site: int) -> None:
    """Leave y as it is: all rows are the base's."""


class LoraSlots:
    """Which adapter each slot holds, and in which pages of the arena its weights lie."""

    def __init__(
        self,
        architecture: Architecture,
        arena: Tensor,
        make: Callable[[Tensor, Tables, Sequence[Sequence[int]]], LoraKernel],
        base: Base,
        *,
        slots: int,
        pages_max: int,
    ) -> None:
        """
        Args:
            architecture: the rank's part of the model.
            arena: as ``granules.typed`` returns it.
            make: the device's kernel.
            base: the model, and who has the other parts of it.
            slots: how many adapters there may be.
            pages_max: that the updates of an adapter's layers fill.
        """
        self._architecture = architecture
        self._base = base
        self._pages_max = pages_max
        self._arena = arena
        self._tables = Tables(slots, architecture.layers, len(SITES), pages_max)
        widths = [
            [architecture.module_shape(module)[0] for module in modules]
            for modules in SITES.values()
        ]
        self.kernel = make(arena, self._tables, widths)
        self._columns = {  # of each module in its site's outputs
            site: dict(
                zip(modules, starmap(slice, pairwise(accumulate(columns, initial=0))), strict=True)
            )
            for (site, modules), columns in zip(SITES.items(), widths, strict=True)
        }
        self.digests: list[str | None] = [None] * slots
        self.times = Histogram(LOAD_BUCKETS_S)
        self._own: list[Own | None] = [None] * slots
        rank, size = base.group.rank, base.group.size
        self._reader = Reader(architecture.vocabulary, architecture.shard, rank, size)

    def fill(
        self,
        slot: int,
        file: AdapterFile,
        pages: Sequence[int],
        run: Run = at_once,
    ) -> None:
        """Replace what a slot holds by an adapter, whose weights are written into ``pages``.

        A step that uses neither the slot nor the pages may be computed meanwhile. ``run`` has the
        device's part of it done, now or later. All ranks fill the same slots in the same order.
        """
        started_ns = time.perf_counter_ns()
        # Of an adapter's own modules these tables know nothing, and those may fill any number.
        self._tables.clear(slot, pages[: self._pages_max])
        used = 0
        for layer in range(self._architecture.layers):
            sites = [self._modules(file, layer, site) for site in SITES]
            laid = self._tables.lay_out(slot, layer, sites, self._arena.dtype)
            run(partial(packing.write, self._arena, layer, pages, laid))
            used = max(used, laid.granules)
        self._own[slot] = self._reader.load(file, Writer(self._arena, pages, used, run))
        run(self.kernel.stage(slot))
        self.digests[slot] = file.digest
        self.times.add(time.perf_counter_ns() - started_ns)

    def form(self, host: HostBatch) -> Form | None:
        """Return which form of graphs computes a step of decodes; None: none does."""
        own = self._owned(host)
        if any(each.norms for each in own):
            return None
        return Form.OWN if own else self.kernel.form(host)

    def own(self, host: HostBatch, put: Put) -> list[Segment]:
        """Return the segments of a step's adapters that have more than updates of layers."""
        return of_step(self._own, host, put) if self._owned(host) else []

    def _owned(self, host: HostBatch) -> list[Own]:
        """Return what the adapters of a step have of their own."""
        found = (self._own[slot] for slot in host.adapter_slots)
        return [own for own in found if own is not None]

    def _modules(self, file: AdapterFile, layer: int, site: str) -> list[Module]:
        """Read a site's modules; of one rank, A by the inputs or B by the outputs that are here."""
        shard = self._architecture.shard
        read = []
        for part, (module, columns) in enumerate(self._columns[site].items()):
            name = f"layers.{layer}.{module}"
            if name not in file.scales:
                continue
            inputs = shard.inputs(module) if shard else None
            outputs = _slice(shard.outputs(module) if shard else None)
            a = file.matrix(f"{name}.A").part(slice(None), _slice(inputs))
            b = file.matrix(f"{name}.B").part(outputs, slice(None))
            found = Module(part, a, b, file.scales[name])
            # Added once to the sum of the ranks, like the base's own.
            if f"{name}.bias" in file.names and (inputs is None or self._base.group.rank == 0):
                bias = file.tensor(f"{name}.bias")[outputs]
                found = found._replace(affine=of_bias(bias, found.scale))
            if f"{name}.magnitude" in file.names:
                magnitude = file.tensor(f"{name}.magnitude")[outputs]
                others = None if inputs is None else self._base.group
                base = self._base.sites[layer][site]
                affine = of_magnitude(magnitude, found, base, columns, others)
                found = found._replace(affine=affine)
            read.append(found)
        return read


def granules_max(architecture: Architecture, rank: int) -> int:
    """Return how many granules of one layer an adapter has that changes every module."""
    groups = -(-rank // RANKS)
    return sum(
        groups * (-(-features // COLUMNS) + -(-out // COLUMNS))
        + -(-out // (AFFINE_BLOCKS * COLUMNS))
        for modules in SITES.values()
        for out, features in map(architecture.module_shape, modules)
    )


def _slice(span: Span | None) -> slice:
    return slice(None) if span is None else slice(*span)
