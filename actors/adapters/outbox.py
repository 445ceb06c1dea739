"""What the adapter store is to send, until there is room for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from weft.runtime.actor import Send
from weft.runtime.messages import Acquired, AcquireFailed


class Outbox:
    """Messages in the order of their receivers: one without room holds up no other."""

    def __init__(self) -> None:
        self._sends: deque[Send] = deque()

    @property
    def is_empty(self) -> bool:
        """Whether everything has been sent."""
        return not self._sends

    def add(self, sends: Iterable[Send]) -> None:
        """Send these as soon as there is room."""
        self._sends += sends

    def flush(self, room: dict[str, int]) -> list[Send]:
        """Return what there is room for, by role; the room is less by that."""
        sends, kept = [], deque[Send]()
        for send in self._sends:
            if room[send.to] > 0:
                room[send.to] -= 1
                sends.append(send)
            else:
                kept.append(send)
        self._sends = kept
        return sends

    def lose(self, scheduler: str) -> None:
        """Drop what was granted to a scheduler that is gone.

        It would tell the next one of a pin that it does not have.
        """
        self._sends = deque(
            send
            for send in self._sends
            if send.to != scheduler or not isinstance(send.message, Acquired | AcquireFailed)
        )
