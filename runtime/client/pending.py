"""What a client has asked: what was heard of it and not read yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from weft.runtime.client.events import Accepted, Changed, Event, Finished, Models, Report, Text

Answer = TypeVar("Answer", Models, Report, Changed)


class Request:
    """A request for text, which is answered by many events."""

    def __init__(self, label: str, wake: Callable[[], None]) -> None:
        """``wake`` is called when there is something to read."""
        self.label = label
        self.accepted: Accepted | None = None
        self._wake = wake
        self._events: deque[Event] = deque()
        self._failure: Exception | None = None
        self._unfinished = 1  # choices; how many there are is known once it is accepted

    @property
    def is_over(self) -> bool:
        """Whether weft will say nothing more of it."""
        return self._unfinished == 0

    @property
    def has_news(self) -> bool:
        """Whether ``take`` returns something, or raises."""
        return bool(self._events) or self.is_over

    def take(self) -> Event | None:
        """Return the next event, None after the last one.

        Raises ``Refused`` or ``Disconnected``. There must be news.
        """
        if self._events:
            return self._events.popleft()
        assert self.is_over
        if self._failure is not None:
            raise _fresh(self._failure)
        return None

    def hear(self, event: Event) -> None:
        """Add an event. Text that follows unread text of the same choice is joined to it."""
        last = self._events[-1] if self._events else None
        if (
            isinstance(event, Text)
            and isinstance(last, Text)
            and event.choice == last.choice
            and not (event.logprobs or last.logprobs)
        ):
            self._events[-1] = Text(last.choice, last.text + event.text, [])
        else:
            self._events.append(event)
        if isinstance(event, Accepted):
            self.accepted = event
            self._unfinished = event.choices
        elif isinstance(event, Finished):
            self._unfinished -= 1
        self._wake()

    def fail(self, failure: Exception) -> None:
        """End it; what was heard before can still be read."""
        self._failure = failure
        self._unfinished = 0
        self._wake()


class Question(Generic[Answer]):
    """Something with one answer: a list of models, a report, or what came of an operation."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """``wake`` is called when it is settled."""
        self._answer: Answer | Exception | None = None
        self._wake = wake

    @property
    def is_settled(self) -> bool:
        """Whether ``take`` returns the answer, or raises."""
        return self._answer is not None

    def take(self) -> Answer:
        """Return the answer. Raises ``Refused`` or ``Disconnected``. It must be settled."""
        assert self._answer is not None
        if isinstance(self._answer, Exception):
            raise _fresh(self._answer)
        return self._answer

    def settle(self, answer: Answer | Exception) -> None:
        """Take in the answer."""
        self._answer = answer
        self._wake()


def _fresh(error: Exception) -> Exception:
    """Return an error that may be raised many times without what it met the times before."""
    return error.with_traceback(None)
