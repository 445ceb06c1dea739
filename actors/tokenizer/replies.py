"""Answers that wait until their client's link has room."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from weft.runtime.actor import Send
from weft.runtime.messages import Message

# A client that leaves this many answers unread while it keeps asking ignores its link's credit;
# what it does not read any more may be lost.
UNREAD_MAX = 1024


class Replies:
    """One bounded queue for each client."""

    def __init__(self) -> None:
        self.dropped = 0
        self._queues: dict[str, deque[Message]] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def put(self, client: str, message: Message) -> None:
        """Queue an answer."""
        queue = self._queues.setdefault(client, deque())
        if len(queue) == UNREAD_MAX:
            self.dropped += 1
        else:
            queue.append(message)

    def forget(self, client: str) -> None:
        """Drop what waits for a client that is gone."""
        self._queues.pop(client, None)

    def flush(self, room: Callable[[str], int]) -> list[Send]:
        """Return the answers that can leave now."""
        sends = []
        for client in list(self._queues):
            queue = self._queues[client]
            for _ in range(min(room(client), len(queue))):
                sends.append(Send(client, queue.popleft()))
            if not queue:
                del self._queues[client]
        return sends

    def check(self) -> None:
        """Assert that no queue is empty or too long."""
        assert all(0 < len(queue) <= UNREAD_MAX for queue in self._queues.values())
