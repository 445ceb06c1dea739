"""The order in which a device does what it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch


class Mark(Protocol):
    """A place in the order."""

    @property
    def is_past(self) -> bool:
        """Whether everything before it has been done."""
        ...

    def wait(self) -> None:
        """Wait until everything before it has been done."""
        ...


class Stream(Protocol):
    """Does work in order, perhaps later."""

    def run(self, work: Callable[[], None]) -> None:
        """Have work done, of which no part waits for the device."""
        ...

    def mark(self) -> Mark:
        """Return the place behind all work so far."""
        ...


class CudaMark:
    """An event on the current stream."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    @property
    def is_past(self) -> bool:
        """Whether the device has come by."""
        is_past: bool = self._event.query()  # type: ignore[no-untyped-call]
        return is_past

    def wait(self) -> None:
        """Wait for the device."""
        self._event.synchronize()


class CudaStream:
    """The current stream of the current device, to which work is handed as it comes."""

    def run(self, work: Callable[[], None]) -> None:
        """Launch the work's kernels and copies."""
        work()

    def mark(self) -> CudaMark:
        """Return the place behind everything launched."""
        return CudaMark()
