"""What an actor is. It changes only by what it is given, and touches nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from weft.runtime.messages import Message

InboxIn = TypeVar("InboxIn", contravariant=True)


class Send(NamedTuple):
    """An instruction to the loop: deliver ``message`` to ``to``.

    ``to`` is a role ("scheduler", "runner0") or a client's identity, as it came in ``Mail.source``.
    """

    to: str
    message: Message


class Turn(NamedTuple):
    """What the loop tells an actor about the world when it may act."""

    now_ns: int  # monotonic
    # Messages that the link to a peer takes now. 1 for a client that has none: nothing may wait for
    # it for ever, and what is sent to it comes back as ``lost``.
    room: Callable[[str], int]


class Actor(Protocol[InboxIn]):
    """State that changes only by messages. No socket, thread, clock or random source inside."""

    def receive(self, source: str, message: InboxIn, now_ns: int) -> list[Send]:
        """Take in one message from ``source``."""
        ...

    def advance(self, turn: Turn) -> list[Send] | None:
        """Do the work that no single message asks for. Empty: nothing to do until one arrives.

        None: something is under way whose end no message announces, so ask again at once.
        """
        ...

    def lost(self, peer: str, now_ns: int) -> list[Send]:
        """Hear that nothing more can be sent to a client, or that a role's former life is over.

        Whatever that life had said was received before; what comes from the role now is the next's.
        """
        ...

    def drain(self) -> None:
        """Accept no new work from now on."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether the actor holds no work, so that a drained process may exit."""
        ...

    def check(self) -> None:
        """Assert the invariants of everything the actor owns."""
        ...
