"""Where adapters' weights are, in the memory of the device whose kernels ask for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from weft.kernels.sgmv.granules import Tables, sent
from weft.kernels.sgmv.plan import Ints


class DeviceTables:
    """A copy of ``Tables``: int32 and float32 tensors of the same shapes."""

    def __init__(self, tables: Tables, device: torch.device) -> None:
        self._host = tables
        self.pages = _copy(tables.pages, device)
        self.groups = _copy(tables.groups, device)
        self.a_start = _copy(tables.a_start, device)
        self.b_start = _copy(tables.b_start, device)
        self.affine_start = _copy(tables.affine_start, device)
        self.scales = torch.from_numpy(tables.scales).to(device, copy=True)
        # For plans, on the host: [slots, sites], the groups of 8 ranks that a slot has in all
        # modules of a site, in the layer that has most.
        self.groups_most: Ints = tables.groups.sum(axis=-1).max(axis=1)

    @property
    def places(self) -> int:
        """Sites of all layers: how far the entries of one slot are from those of the next."""
        _, layers, sites, _ = self.groups.shape
        return layers * sites

    def stage(self, slot: int) -> Callable[[], None]:
        """Take over for plans what has changed for a slot; return what brings it to the device.

        That is as it is now, and goes to the current stream. No step may run that reads the slot.
        """
        host = self._host
        self.groups_most[slot] = host.groups[slot].sum(axis=-1).max(axis=0)
        pairs = (
            (self.pages, host.pages),
            (self.groups, host.groups),
            (self.a_start, host.a_start),
            (self.b_start, host.b_start),
            (self.affine_start, host.affine_start),
            (self.scales, host.scales),
        )
        news = [(there[slot], torch.from_numpy(here[slot].copy())) for there, here in pairs]

        def send() -> None:
            for there, here in news:
                there.copy_(sent(here, there.device), non_blocking=True)

        return send


def _copy(array: Ints, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, copy=True)
