"""Link control: every edge, both ways."""

from __future__ import annotations

from weft.runtime.messages.base import Message


class Hello(Message, frozen=True):
    """Connecting side to bound side: open the link. Nothing else is heard before it."""

    window: int  # messages that the sender is ready to receive beyond those acknowledged


class Welcome(Message, frozen=True):
    """Bound side to connecting side: the link is open."""

    window: int


class Ack(Message, frozen=True):
    """Either side: nothing but the envelope's acknowledgement. Costs no credit."""


class Goodbye(Message, frozen=True):
    """Either side: the link is closed on purpose; what it held can go at once."""


LinkInbox = Hello | Welcome | Ack | Goodbye
