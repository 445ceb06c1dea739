"""Adapters on the device: mixed ranks, any subset of the linear modules."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from safetensors import safe_open
from torch import Tensor

from weft.actors.runner.architecture import Architecture
from weft.actors.runner.rows import HostBatch
from weft.actors.runner.staging import Staging
from weft.actors.shards import Shard, Span
from weft.kernels.sgmv import cpu, granules, segments
from weft.kernels.sgmv.granules import COLUMNS, RANKS, Module, Tables
from weft.kernels.sgmv.segments import Segments

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

    def update(self, slot: int) -> None:
        """Hear that the tables of a slot have changed."""
        ...

    def plan(
        self, host: HostBatch, staging: Staging | None = None, *, graph_rows: int | None = None
    ) -> LoraUpdate:
        """Return the update of a step, of which what the device reads lies in ``staging``.

        ``graph_rows``: of the graph that it is part of, of which every launch has the same shape.
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

    def update(self, slot: int) -> None:
        """Do nothing: these are the tables that the kernel reads."""

    def plan(
        self, host: HostBatch, staging: Staging | None = None, *, graph_rows: int | None = None
    ) -> LoraUpdate:
        """Return the update of a step."""
        if not host.lora_slots:
            return no_update
        return partial(self._kernel.add, segments=Segments(host.lora_starts, host.lora_slots))

    def staged_bytes(self) -> int:
        """Return that nothing is staged."""
        return 0


def no_update(y: Tensor, x: Tensor, layer: int, site: int) -> None:
    """Leave y as it is: all rows are the base's."""


class AdapterFile(Protocol):
    """The adapter store's normalised file, mapped: its name may vanish while it is read.

    ``layers.{i}.{module}.A`` [rank, in] and ``.B`` [out, rank]; each module's scale is in the
    metadata.
    """

    def metadata(self) -> dict[str, str]:
        """Return the digest, and the scales as JSON."""
        ...

    def get_slice(self, name: str) -> Saved:
        """Return a tensor of which a part can be read."""
        ...


class Saved(Protocol):
    """A tensor in a file."""

    def __getitem__(self, index: tuple[slice, slice]) -> Tensor:
        """Read a part of it."""
        ...


def open_file(path: Path, digest: str) -> AdapterFile:
    """Map the file of an adapter."""
    file: AdapterFile = safe_open(path, framework="pt")
    assert file.metadata()["digest"] == digest, f"{path} is not {digest}"
    return file


class LoraSlots:
    """Which adapter each slot holds, and in which pages of the arena its weights lie."""

    def __init__(
        self,
        architecture: Architecture,
        arena: Tensor,
        make: Callable[[Tensor, Tables, Sequence[Sequence[int]]], LoraKernel],
        *,
        slots: int,
        pages_max: int,
    ) -> None:
        """``arena`` as ``granules.typed`` returns it; no adapter has more than ``pages_max``."""
        self._architecture = architecture
        self._arena = arena
        self._tables = Tables(slots, architecture.layers, len(SITES), pages_max)
        widths = [
            [architecture.module_shape(module)[0] for module in modules]
            for modules in SITES.values()
        ]
        self.kernel = make(arena, self._tables, widths)
        self.digests: list[str | None] = [None] * slots

    def fill(self, slot: int, digest: str, file: AdapterFile, pages: Sequence[int]) -> None:
        """Replace what a slot holds by an adapter, whose weights are written into ``pages``.

        A step that uses neither the slot nor the pages may be computed meanwhile.
        """
        self._tables.clear(slot, pages)
        scales: dict[str, float] = json.loads(file.metadata()["scales"])
        for layer in range(self._architecture.layers):
            sites = [
                _modules(file, scales, layer, modules, self._architecture.shard)
                for modules in SITES.values()
            ]
            laid = self._tables.lay_out(slot, layer, sites, self._arena.dtype)
            granules.write(self._arena, layer, pages, laid)
        self.kernel.update(slot)
        self.digests[slot] = digest


def granules_max(architecture: Architecture, rank: int) -> int:
    """Return how many granules of one layer an adapter has that changes every module."""
    groups = -(-rank // RANKS)
    return sum(
        groups * (-(-features // COLUMNS) + -(-out // COLUMNS))
        for modules in SITES.values()
        for out, features in map(architecture.module_shape, modules)
    )


def _modules(
    file: AdapterFile,
    scales: dict[str, float],
    layer: int,
    modules: Sequence[str],
    shard: Shard | None,
) -> list[Module]:
    """Read a site's modules; of one rank, A by the inputs or B by the outputs that are here."""
    read = []
    for part, module in enumerate(modules):
        name = f"layers.{layer}.{module}"
        if name in scales:
            inputs = _slice(shard.inputs(module) if shard else None)
            outputs = _slice(shard.outputs(module) if shard else None)
            a = file.get_slice(f"{name}.A")[:, inputs]
            b = file.get_slice(f"{name}.B")[outputs, :]
            read.append(Module(part, a, b, scales[name]))
    return read


def _slice(span: Span | None) -> slice:
    return slice(None) if span is None else slice(*span)
