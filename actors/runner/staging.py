"""Memory for what a step tells the device: filled by numpy, brought there by one copy.

There are two sets of it on the host, pinned where the device is a GPU, so that one step can be laid
out while the copy of the one before still waits for its turn. The device has one: its work is done
in order. Steps that take the same room for the same things find them at the same addresses, which
is what a captured graph needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from weft.actors.runner.engine import STEPS_MAX

# Everything begins at a multiple of so many bytes: kernels are compiled anew for pointers that are
# aligned differently, and read 16 bytes at once.
ALIGNMENT = 64

_TENSOR_TYPES = {
    np.dtype(np.int64): torch.int64,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.float32): torch.float32,
}


class Field(NamedTuple):
    """Room for numbers: where the host writes them, and where the device finds them."""

    host: NDArray[np.generic]
    tensor: Tensor


class Staging:
    """Room for one step after another, of ``size`` bytes each."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        pinned = device.type == "cuda"
        self._device = torch.zeros(size, dtype=torch.uint8, device=device)
        self._hosts = [
            torch.zeros(size, dtype=torch.uint8, pin_memory=pinned) for _ in range(STEPS_MAX)
        ]
        self._turn = 0
        self._end = 0
        self._used = 0

    def begin(self) -> None:
        """Lay out a new step. The one that last had this memory is over."""
        self._turn = (self._turn + 1) % len(self._hosts)
        self._end = self._used = 0

    def take(self, dtype: DTypeLike, count: int, room: int | None = None) -> Field:
        """Return the next ``room`` numbers, of which this step uses ``count``: by default all."""
        kind = np.dtype(dtype)
        begin = self._end
        used = begin + count * kind.itemsize
        end = begin + (count if room is None else room) * kind.itemsize
        assert used <= end <= self.size, f"a step needs {end} bytes of {self.size}"
        self._used, self._end = used, -(-end // ALIGNMENT) * ALIGNMENT
        host = self._hosts[self._turn][begin:used].numpy().view(kind)
        return Field(host, self._device[begin:end].view(_TENSOR_TYPES[kind]))

    def put(self, values: NDArray[np.generic], room: int | None = None, padding: int = 0) -> Tensor:
        """Take ``room`` for an array, with ``padding`` behind it; return where it will be."""
        count = len(values) if room is None else room
        field = self.take(values.dtype, count)
        field.host[: len(values)] = values
        field.host[len(values) :] = padding
        return field.tensor

    def sender(self) -> Callable[[], None]:
        """Return what brings this step to the device. For the device's own order of work."""
        used = self._used
        host, device = self._hosts[self._turn], self._device

        def send() -> None:
            device[:used].copy_(host[:used], non_blocking=True)

        return send
