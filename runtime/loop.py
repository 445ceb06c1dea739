"""The one loop that every actor's process runs. All of an actor's input and output is here."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from weft.runtime.actor import Actor, Send, Turn
from weft.runtime.endpoint import Lost, Mail
from weft.runtime.messages import Begin, Generate, Message

# Messages taken between two turns. Bounds how long a burst of arrivals can delay the next step.
TURN_MESSAGES_MAX = 64

# The longest wait for a message: an actor whose work depends on time, and a signal, wait no longer.
IDLE_WAIT_S = 0.05

_log = logging.getLogger(__name__)


class Mailbox(Protocol):
    """Where an actor's messages come from and go to."""

    def take(self, limit: int, wait_s: float) -> list[Mail | Lost]:
        """Return at most ``limit`` events in order, waiting at most ``wait_s`` for the first."""
        ...

    def send(self, send: Send) -> None:
        """Queue one message. Never blocks."""
        ...

    def room(self, to: str) -> int:
        """Return how many messages to ``to`` would leave at once."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether every process that this one needs has answered."""
        ...

    @property
    def is_flushed(self) -> bool:
        """Whether no message waits for credit."""
        ...


class Drain:
    """SIGTERM and SIGINT: the first one asks for a drain, the second ends the process at once."""

    def __init__(self) -> None:
        self.is_wanted = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        if self.is_wanted:
            os._exit(128 + number)
        self.is_wanted = True


def turn(
    actor: Actor[Any],
    mailbox: Mailbox,
    clock: Callable[[], int],
    wait_s: float,
    beat: Callable[[], None] = lambda: None,
) -> bool:
    """Let the actor work once, then take in what has arrived; return whether anything happened.

    Waits only if the actor had nothing to do, and nothing under way. ``clock`` returns nanoseconds;
    ``beat`` is called unless all that the actor does is to wait for what is under way.
    An exception is a bug in the actor, and ends the process.
    """
    produced = actor.advance(Turn(clock(), mailbox.room))
    if produced is not None:
        beat()
    for send in produced or ():
        mailbox.send(send)
    events = mailbox.take(TURN_MESSAGES_MAX, wait_s if produced == [] else 0.0)
    for event in events:
        match event:
            case Mail(source, message):
                if _log.isEnabledFor(logging.DEBUG):
                    _tell(source, message)
                replies = actor.receive(source, message, clock())
            case Lost(peer):
                replies = actor.lost(peer, clock())
        for send in replies:
            mailbox.send(send)
    return produced != [] or bool(events)


def _tell(source: str, message: Message) -> None:
    """Log a message that has come, under its request if it names one."""
    match message:
        case Generate(request_id=request) | Begin(request_id=request):
            _log.debug("%s from %s", type(message).__name__, source, extra={"request": request})
        case _:
            _log.debug("%s from %s", type(message).__name__, source)


def run(
    actor: Actor[Any],
    mailbox: Mailbox,
    drain: Drain,
    on_ready: Callable[[], None],
    beat: Callable[[], None],
) -> None:
    """Drive ``actor`` until it is drained: told to stop, idle, and everything it said has left.

    ``on_ready`` is called once the actor had a turn with every link open, and so has said what the
    others must know first; ``beat`` as in ``turn``.
    """
    # Everything loaded so far stays: the garbage collector need not look at it again.
    gc.collect()
    gc.freeze()
    is_ready = is_draining = False
    while True:
        was_open = is_ready or mailbox.is_open
        did_work = turn(actor, mailbox, time.monotonic_ns, IDLE_WAIT_S, beat)
        if not is_ready and was_open and mailbox.is_flushed:
            on_ready()
            is_ready = True
        if drain.is_wanted and not is_draining:
            _log.info("draining")
            actor.drain()
            is_draining = True
        elif is_draining and not did_work and actor.is_idle and mailbox.is_flushed:
            return
