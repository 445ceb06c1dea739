"""What schedulers are to hear from the detokenizer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from weft.runtime import replicas
from weft.runtime.actor import Send
from weft.runtime.messages import ClientGone, StopFound


class Notices:
    """Stop strings that were found, for the scheduler of the sequence; clients gone, for all."""

    def __init__(self, schedulers: Sequence[str]) -> None:
        self._schedulers = schedulers
        # At most one for each sequence.
        self._stops: list[deque[StopFound]] = [deque() for _ in schedulers]
        # Sets in order of arrival.
        self._gone: list[dict[str, None]] = [{} for _ in schedulers]

    @property
    def is_empty(self) -> bool:
        """Whether all have been told."""
        return not (any(self._stops) or any(self._gone))

    def stop(self, found: StopFound) -> None:
        """Tell a sequence's scheduler."""
        self._stops[replicas.owner(found.sequence)].append(found)

    def gone(self, client: str) -> None:
        """Tell every scheduler: the client may have requests with any."""
        for gone in self._gone:
            gone[client] = None

    def flush(self, room: Callable[[str], int]) -> list[Send]:
        """Return what the links have room for."""
        sends: list[Send] = []
        for scheduler, stops, gone in zip(self._schedulers, self._stops, self._gone, strict=True):
            left = room(scheduler)
            while stops and left > 0:
                sends.append(Send(scheduler, stops.popleft()))
                left -= 1
            while gone and left > 0:
                client = next(iter(gone))
                del gone[client]
                sends.append(Send(scheduler, ClientGone(client)))
                left -= 1
        return sends
