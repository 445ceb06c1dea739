"""Adapters in host memory, as far as the scheduler has asked the store to keep them there."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from weft.runtime.messages import Acquire, Acquired, Release


@dataclass(slots=True)
class Pin:
    """An adapter that the store was asked to keep."""

    acquired: Acquired | None = None  # None: the store has not answered
    read_step: int = -1  # the last step in which runners read the file


class HostPins:
    """What is asked of the store, until a device has read it.

    An adapter is acquired when a waiting sequence needs it on a device, and released when the step
    that loads it has been answered: from then on the device's copy is enough. If the device gives
    it up, it is acquired again. (Of several runners one answers, once all have read the file.)

    Invariants, checked by ``check``: there are at most ``held_max``; bytes are counted.
    """

    def __init__(self, held_max: int, bytes_max: int) -> None:
        """``bytes_max`` is what adapters may take in host memory."""
        assert held_max > 0
        self._held_max = held_max
        self._bytes_max = bytes_max
        self._pins: dict[str, Pin] = {}
        self._bytes = 0  # of those that are in host memory
        self._missing = 0  # pins that the store has not answered
        self._largest = 0  # bytes of an adapter that ever came

    def __len__(self) -> int:
        return len(self._pins)

    def get(self, digest: str) -> Acquired | None:
        """Return what is in host memory, None if it is not there (yet)."""
        pin = self._pins.get(digest)
        return pin.acquired if pin else None

    def has(self, digest: str) -> bool:
        """Whether the store was asked for an adapter, and not told that it may go."""
        return digest in self._pins

    @property
    def has_room_ahead(self) -> bool:
        """Whether there is room for what is not urgent: half is left to what is.

        What the store has been asked for, and one more, may be as large as any that came before.
        One by itself always has room.
        """
        if not self._pins:
            return True
        expected = self._bytes + (self._missing + 1) * self._largest
        return len(self._pins) < self._held_max // 2 and expected <= self._bytes_max // 2

    def want(self, digest: str) -> list[Acquire]:
        """Ask the store for an adapter, once, if there is room to hold it."""
        if digest in self._pins or len(self._pins) >= self._held_max:
            return []
        self._pins[digest] = Pin()
        self._missing += 1
        return [Acquire(digest)]

    def arrived(self, acquired: Acquired) -> None:
        """Note that the store keeps the weights."""
        pin = self._pins[acquired.digest]
        assert pin.acquired is None, f"{acquired.digest} arrived twice"
        pin.acquired = acquired
        self._missing -= 1
        self._bytes += acquired.size_bytes
        self._largest = max(self._largest, acquired.size_bytes)

    def failed(self, digest: str) -> None:
        """Note that the store cannot provide the weights."""
        assert self._pins.pop(digest).acquired is None
        self._missing -= 1

    def read(self, digest: str, step: int) -> Acquired:
        """Return what runners read in ``step``."""
        acquired = self.get(digest)
        assert acquired is not None, f"{digest} is not in host memory"
        self._pins[digest].read_step = step
        return acquired

    def release(self, needed: Container[str], steps_done: int) -> list[Release]:
        """Let go of what is not needed; ``steps_done`` is the first step not answered."""
        gone = [
            pin.acquired
            for digest, pin in self._pins.items()
            if pin.acquired and pin.read_step < steps_done and digest not in needed
        ]
        for acquired in gone:
            del self._pins[acquired.digest]
            self._bytes -= acquired.size_bytes
        return [Release(acquired.digest) for acquired in gone]

    def check(self) -> None:
        """Assert the invariant."""
        assert len(self._pins) <= self._held_max
        there = [pin.acquired for pin in self._pins.values() if pin.acquired]
        assert self._bytes == sum(acquired.size_bytes for acquired in there)
        assert self._missing == len(self._pins) - len(there)
