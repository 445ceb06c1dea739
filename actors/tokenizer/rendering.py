"""What the tokenizer asks of whoever renders adapters' chat templates: it asks now, hears later."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

from weft.actors.chat_templates import Chat

# Of what is said about a template. It quotes the template, and goes to clients.
REASON_CHARACTERS_MAX = 1024


class Job(msgspec.Struct, frozen=True):
    """A chat to be made a text."""

    template: str
    variables: dict[str, str]  # beside the chat: eos_token and its like
    chat: Chat


class Unrendered(msgspec.Struct, frozen=True, tag="unrendered", forbid_unknown_fields=True):
    """Why there is no text."""

    reason: str
    is_broken: bool = False  # the template is at fault, whatever the chat


class Text(msgspec.Struct, frozen=True, tag="text", forbid_unknown_fields=True):
    """What a template made of a chat."""

    text: str


class Rendered(NamedTuple):
    """What became of one ``start``."""

    ticket: int
    result: Text | Unrendered


class Renderer(Protocol):
    """Renders chats by templates that may do anything, several at a time."""

    def start(self, job: Job) -> int:
        """Ask for a text, and return a number to know the answer by."""
        ...

    def forget(self, ticket: int) -> None:
        """Take a ``start`` back: there will be no answer."""
        ...

    def finished(self) -> list[Rendered]:
        """Return what has ended since the last call, in any order, each ticket once."""
        ...
