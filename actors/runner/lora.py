"""Adapter slots on the device: mixed ranks, any subset of the linear modules."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from weft.actors.runner.architecture import Architecture
from weft.kernels.sgmv import cpu, segments
from weft.kernels.sgmv.reference import Part
from weft.kernels.sgmv.segments import Segments

# Modules that share an input are one site: their A matrices are multiplied together.
SITES = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}


class LoraSlots:
    """Which weights each slot holds, by layer and site.

    A slot is filled from the adapter store's normalised file: ``layers.{i}.{module}.A`` [rank, in]
    and ``.B`` [out, rank], with each module's scale in the metadata.
    """

    def __init__(
        self, architecture: Architecture, slots: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._architecture = architecture
        self._device = device
        self._dtype = dtype
        is_native = device.type == "cpu" and cpu.library() is not None
        make: type[cpu.SiteTable] | type[segments.SiteTable] = (
            cpu.SiteTable if is_native else segments.SiteTable
        )
        self._sites = {site: [make(slots) for _ in range(architecture.layers)] for site in SITES}
        self.digests: list[str | None] = [None] * slots

    def fill(self, slot: int, digest: str, path: Path) -> None:
        """Replace what a slot holds."""
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            assert metadata["digest"] == digest, f"{path} is not {digest}"
            scales: dict[str, float] = json.loads(metadata["scales"])
            for i in range(self._architecture.layers):
                for site, modules in SITES.items():
                    parts = []
                    column = 0
                    for module in modules:
                        name = f"layers.{i}.{module}"
                        if name in scales:
                            a = self._on_device(file.get_tensor(f"{name}.A"))
                            b = self._on_device(file.get_tensor(f"{name}.B").float() * scales[name])
                            parts.append(Part(a, b, column))
                        column += self._architecture.module_shape(module)[0]
                    self._sites[site][i].set(slot, parts)
        self.digests[slot] = digest

    def add(self, y: Tensor, x: Tensor, site: str, layer: int, segments: Segments) -> None:
        """Add the updates of a sorted batch: y [T, out of the site], x [T, in]."""
        if len(segments):
            self._sites[site][layer].add(y, x, segments)

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, self._dtype)
