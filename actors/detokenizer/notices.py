"""What schedulers are to hear from the detokenizer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from weft.runtime.actor import Send
from weft.runtime.messages import ClientGone, Marked, Message, StopFound, Unread


class _Notice:
    """What one scheduler is to hear."""

    def __init__(self) -> None:
        # At most one for each sequence.
        self.stops: deque[StopFound] = deque()
        self.gone: dict[str, None] = {}  # a set in order of arrival
        self.moves: deque[Marked | Unread] = deque()

    @property
    def is_empty(self) -> bool:
        return not (self.stops or self.gone or self.moves)

    def take(self) -> Iterator[Message]:
        """Yield everything. What a ``Mark`` came behind has been said before it is answered."""
        while self.stops:
            yield self.stops.popleft()
        while self.gone:
            client = next(iter(self.gone))
            del self.gone[client]
            yield ClientGone(client)
        while self.moves:
            yield self.moves.popleft()


class Notices:
    """Stop strings that were found, for who sampled them; clients gone, for all schedulers."""

    def __init__(self, schedulers: Sequence[str]) -> None:
        self._notices = {scheduler: _Notice() for scheduler in schedulers}

    @property
    def is_empty(self) -> bool:
        """Whether all have been told."""
        return all(notice.is_empty for notice in self._notices.values())

    def stop(self, scheduler: str, found: StopFound) -> None:
        """Tell the scheduler that has the sequence."""
        self._notices[scheduler].stops.append(found)

    def gone(self, client: str) -> None:
        """Tell every scheduler: the client may have requests with any."""
        for notice in self._notices.values():
            notice.gone[client] = None

    def moved(self, scheduler: str, answer: Marked | Unread) -> None:
        """Answer a scheduler whose requests come or go, behind what it was to hear before."""
        self._notices[scheduler].moves.append(answer)

    def flush(self, room: Callable[[str], int]) -> list[Send]:
        """Return what the links have room for."""
        sends: list[Send] = []
        for scheduler, notice in self._notices.items():
            left = room(scheduler)
            if not notice.is_empty and left > 0:
                messages = islice(notice.take(), left)
                sends += [Send(scheduler, message) for message in messages]
        return sends
