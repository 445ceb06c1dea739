"""Scheduler to router to scheduler: requests that one replica has begun, and another goes on with.

A scheduler that is asked to (``Yield``) makes sure that the detokenizer has heard all that it had
to say of a request (``Mark``), and tells the router what it knows (``HandOver``), which tells
another scheduler. That one asks whether somebody still reads it (``Resume``).
"""

from __future__ import annotations

from typing import Literal

from weft.runtime.messages.base import Message, Part, Sequence
from weft.runtime.messages.generation import Generate


class Yield(Message, frozen=True):
    """Router to scheduler: hand these requests over. Answered by ``Yielded``.

    Those that have not begun; and all but suspects, if there are no runners. Others stay.
    """

    request_ids: list[str]
    with_suspects: bool = False  # the runners may never come back


class Mark(Message, frozen=True):
    """Scheduler to detokenizer: say ``Marked`` once everything before this has been heard."""

    number: int


class Marked(Message, frozen=True):
    """Detokenizer to scheduler: what came before this ``Mark`` was heard, and answered."""

    number: int


class HandedChoice(Part, frozen=True):
    """A choice that is not over. Its client may have been told of all of it, and of no more."""

    sequence: Sequence  # the number that it keeps
    choice: int
    output: list[int]  # tokens after the prompt
    cached_tokens: int | None  # of the prompt, when it first ran; None: it never did
    trusted_at: int | None = None  # tokens that it must know to be out of doubt; None: it is


class HandOver(Message, frozen=True):
    """Scheduler to router to scheduler: go on with this request.

    It is taken whatever the queue holds, and ``Progress`` says so, as of one that was accepted.
    Times are those of the machine's monotonic clock.
    """

    generate: Generate
    choices: list[HandedChoice]  # that are not over
    accepted_ns: int
    admitted_ns: int | None  # None: nothing of it ever ran
    first_token_ns: int | None
    # Where its farthest adapter lay when it came; None: it has none.
    tier: Literal["device", "host", "disk"] | None
    deaths_alone: int = 0  # of runners that computed nothing else
    is_suspect: bool = False  # it is to be computed by itself


class Yielded(Message, frozen=True):
    """Scheduler to router: what a ``Yield`` named has been handed over, or is over, or stays."""


class Resume(Message, frozen=True):
    """Scheduler to detokenizer: these sequences, another scheduler's until now, go on here."""

    sequences: list[Sequence]


class Unread(Message, frozen=True):
    """Detokenizer to scheduler: of those that ``Resume`` named, nobody reads these any more."""

    sequences: list[Sequence]


class Settled(Message, frozen=True):
    """Router to scheduler: requests that it has handed over are over.

    Until then their labels are in use there, and their adapters are not ``Retired``.
    """

    request_ids: list[str]
