"""Adapters on the device: mixed ranks, any subset of the linear modules."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from safetensors import safe_open
from torch import Tensor

from weft.actors.runner.affine import BaseSite, of_bias, of_magnitude
from weft.actors.runner.architecture import Architecture
from weft.actors.shards import Span
from weft.kernels.collectives.reference import Collectives
from weft.kernels.sgmv import cpu, granules, segments
from weft.kernels.sgmv.granules import AFFINE_BLOCKS, COLUMNS, RANKS, Module, Tables
from weft.kernels.sgmv.segments import Segments

# Modules that share an input are one site: their A matrices are multiplied together.
SITES = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
_SITE_INDEX = {site: index for index, site in enumerate(SITES)}


class PagedLora(Protocol):
    """The kernel of one device."""

    def add(self, y: Tensor, x: Tensor, layer: int, site: int, segments: Segments) -> None:
        """Add the updates of a sorted batch: y [T, out of the site], x [T, in]."""
        ...


class LoraSlots:
    """Which adapter each slot holds, and in which pages of the arena its weights lie."""

    def __init__(
        self,
        architecture: Architecture,
        arena: Tensor,
        base: Sequence[Mapping[str, BaseSite]],
        group: Collectives,
        *,
        slots: int,
        pages_max: int,
    ) -> None:
        """
        Args:
            architecture: the rank's part of the model.
            arena: as ``granules.typed`` returns it.
            base: the model's sites, by layer and name.
            group: of the ranks, which fill the same slots at the same time.
            slots: how many adapters there may be.
            pages_max: of an adapter.
        """
        self._architecture = architecture
        self._base = base
        self._group = group
        self._arena = arena
        self._tables = Tables(slots, architecture.layers, len(SITES), pages_max)
        widths = [
            [architecture.module_shape(module)[0] for module in modules]
            for modules in SITES.values()
        ]
        is_native = arena.device.type == "cpu" and cpu.library() is not None
        make = cpu.PagedLora if is_native else segments.PagedLora
        self._kernel: PagedLora = make(arena, self._tables, widths)
        self.digests: list[str | None] = [None] * slots

    def fill(self, slot: int, digest: str, path: Path, pages: Sequence[int]) -> None:
        """Replace what a slot holds by an adapter, whose weights are written into ``pages``.

        ``path`` is the adapter store's normalised file: ``layers.{i}.{module}.A`` [rank, in],
        ``.B`` [out, rank], and perhaps ``.bias`` of B or DoRA's ``.magnitude``, [out]; with each
        module's scale in the metadata.
        """
        self._tables.clear(slot, pages)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            assert metadata["digest"] == digest, f"{path} is not {digest}"
            scales: dict[str, float] = json.loads(metadata["scales"])
            for layer in range(self._architecture.layers):
                sites = [self._modules(file, scales, layer, site) for site in SITES]
                laid = self._tables.lay_out(slot, layer, sites, self._arena.dtype)
                granules.write(self._arena, layer, pages, laid)
        self.digests[slot] = digest

    def _modules(
        self, file: _File, scales: dict[str, float], layer: int, site: str
    ) -> list[Module]:
        """Read a site's modules; of one rank, A by the inputs or B by the outputs that are here."""
        shard = self._architecture.shard
        names = file.keys()
        read = []
        column = 0
        for part, module in enumerate(SITES[site]):
            name = f"layers.{layer}.{module}"
            columns = slice(column, column + self._architecture.module_shape(module)[0])
            column = columns.stop
            if name not in scales:
                continue
            inputs = shard.inputs(module) if shard else None
            outputs = _slice(shard.outputs(module) if shard else None)
            a = file.get_slice(f"{name}.A")[:, _slice(inputs)]
            b = file.get_slice(f"{name}.B")[outputs, :]
            found = Module(part, a, b, scales[name])
            # Added once to the sum of the ranks, like the base's own.
            if f"{name}.bias" in names and (inputs is None or self._group.rank == 0):
                bias = file.get_tensor(f"{name}.bias")[outputs]
                found = found._replace(affine=of_bias(bias, found.scale))
            if f"{name}.magnitude" in names:
                magnitude = file.get_tensor(f"{name}.magnitude")[outputs]
                others = None if inputs is None else self._group
                base = self._base[layer][site]
                affine = of_magnitude(magnitude, found, base, columns, others)
                found = found._replace(affine=affine)
            read.append(found)
        return read

    def add(self, y: Tensor, x: Tensor, site: str, layer: int, segments: Segments) -> None:
        """Add the updates of a sorted batch: y [T, out of the site], x [T, in]."""
        if len(segments):
            self._kernel.add(y, x, layer, _SITE_INDEX[site], segments)


def granules_max(architecture: Architecture, rank: int) -> int:
    """Return how many granules of one layer an adapter has that changes every module."""
    groups = -(-rank // RANKS)
    return sum(
        groups * (-(-features // COLUMNS) + -(-out // COLUMNS))
        + -(-out // (AFFINE_BLOCKS * COLUMNS))
        for modules in SITES.values()
        for out, features in map(architecture.module_shape, modules)
    )


class _File(Protocol):
    def keys(self) -> list[str]: ...

    def get_slice(self, name: str) -> _Saved: ...

    def get_tensor(self, name: str) -> Tensor: ...


class _Saved(Protocol):
    def __getitem__(self, index: tuple[slice, slice]) -> Tensor: ...


def _slice(span: Span | None) -> slice:
    return slice(None) if span is None else slice(*span)
