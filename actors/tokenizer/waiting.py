"""Requests that have been taken, and neither generated nor refused yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from weft.actors.tokenizer.apart import Apart, Asked, Prepared
from weft.actors.tokenizer.rendering import Job, Renderer
from weft.runtime.messages import AdapterEntry


class Waiting:
    """Who waits for a turn, for a name to be read, or for a chat to be rendered.

    Turns go to those whose chats have been rendered, then to those whose names have been read, and
    then to the others, in the order in which they came.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._inbox: deque[Asked] = deque()
        self._parked: dict[str, deque[Asked]] = {}  # by the name that is being read
        self._apart = Apart(renderer)

    def __len__(self) -> int:
        return len(self._inbox) + sum(map(len, self._parked.values())) + len(self._apart)

    @property
    def parked(self) -> Iterator[str]:
        """Names that are being read."""
        return iter(self._parked)

    @property
    def rendering(self) -> int:
        """Requests that wait for their chats."""
        return len(self._apart)

    @property
    def has_turns(self) -> bool:
        """Whether somebody waits for nothing but a turn."""
        return bool(self._inbox)

    def put(self, asked: Asked) -> None:
        """Let a request wait for its turn, behind all others."""
        self._inbox.append(asked)

    def take(self) -> tuple[Asked, Prepared | None] | None:
        """Return whose turn it is, with what has been rendered for it, if that is so."""
        prepared = self._apart.take()
        if prepared is not None:
            return prepared.asked, prepared
        return (self._inbox.popleft(), None) if self._inbox else None

    def render(self, asked: Asked, entry: AdapterEntry, job: Job) -> None:
        """Let a request wait until its chat has been rendered."""
        self._apart.begin(asked, entry, job)

    def park(self, asked: Asked, name: str) -> bool:
        """Let a request wait until a name has been read; return whether it is the first to."""
        is_first = name not in self._parked
        self._parked.setdefault(name, deque()).append(asked)
        return is_first

    def unpark(self, is_unread: Callable[[str], bool]) -> None:
        """Let those have the next turns whose names have been read, or are gone."""
        for name in [name for name in self._parked if not is_unread(name)]:
            self._inbox.extendleft(reversed(self._parked.pop(name)))

    def cancel(self, client: str, label: str) -> bool:
        """Forget a client's request; return whether there was one."""
        for queue in (self._inbox, *self._parked.values()):
            for asked in queue:
                if asked.client == client and asked.submit.label == label:
                    queue.remove(asked)
                    return True
        return self._apart.cancel(client, label)

    def forget(self, client: str) -> None:
        """Forget every request of a client that is gone."""
        self._inbox = deque(asked for asked in self._inbox if asked.client != client)
        for name, parked in list(self._parked.items()):
            self._parked[name] = deque(asked for asked in parked if asked.client != client)
        self._apart.cancel(client)
