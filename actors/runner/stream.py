"""The order in which a device does what it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

# Has work done for a device, now or later.
Run = Callable[[Callable[[], None]], None]


def at_once(work: Callable[[], None]) -> None:
    """Do work."""
    work()


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

    def wait_for(self, mark: Mark) -> None:
        """Let work that is given from now on begin only once another stream is past a place.

        The device waits, not the host.
        """
        ...


class CudaMark:
    """An event on a stream."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record(stream)

    @property
    def is_past(self) -> bool:
        """Whether the device has come by."""
        is_past: bool = self._event.query()  # type: ignore[no-untyped-call]
        return is_past

    def wait(self) -> None:
        """Wait for the device."""
        self._event.synchronize()

    def hold_up(self, stream: torch.cuda.Stream) -> None:
        """Let a stream wait."""
        stream.wait_event(self._event)


class CudaStream:
    """A stream of a device, to which work is handed as it comes."""

    def __init__(self, device: torch.device, *, is_own: bool) -> None:
        """``is_own``: one of its own, beside the one that is the thread's current one."""
        if is_own:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        else:
            self._stream = torch.cuda.current_stream(device)

    def run(self, work: Callable[[], None]) -> None:
        """Launch the work's kernels and copies."""
        with torch.cuda.stream(self._stream):
            work()

    def mark(self) -> CudaMark:
        """Return the place behind everything launched."""
        return CudaMark(self._stream)

    def wait_for(self, mark: Mark) -> None:
        """Let the device wait for another of its streams."""
        assert isinstance(mark, CudaMark)
        mark.hold_up(self._stream)
