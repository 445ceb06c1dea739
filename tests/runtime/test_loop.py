import signal
import subprocess
import sys

import pytest

from weft.runtime.actor import Send
from weft.runtime.endpoint import Lost, Mail
from weft.runtime.loop import IDLE_WAIT_S, TURN_MESSAGES_MAX, run, turn
from weft.runtime.messages import Cancel


class Script:
    """A mailbox that plays events and records what the actor sends."""

    def __init__(self, *turns, is_flushed=True):
        self.turns = list(turns)
        self.sent = []
        self.waits = []
        self.is_open = True
        self.is_flushed = is_flushed

    def take(self, limit, wait_s):
        assert limit == TURN_MESSAGES_MAX
        self.waits.append(wait_s)
        return self.turns.pop(0) if self.turns else []

    def send(self, send):
        self.sent.append(send)

    def room(self, to):
        return 7


class Countdown:
    """Produces one message a turn while it has credit; each message gives one credit."""

    def __init__(self):
        self.credit = 0
        self.lost_clients = []
        self.is_draining = False
        self.seen = []

    def receive(self, source, message, now_ns):
        self.credit += 1
        return [Send(source, message)]

    def advance(self, turn):
        self.seen.append((turn.now_ns, turn.room("x")))
        if self.credit == 0:
            return []
        self.credit -= 1
        return [Send("peer", Cancel(str(self.credit)))]

    def lost(self, peer, now_ns):
        self.lost_clients.append(peer)
        return []

    def drain(self):
        self.is_draining = True

    @property
    def is_idle(self):
        return self.credit == 0

    def check(self):
        assert self.credit >= 0


class Order:
    """A drain that is wanted after a few turns."""

    def __init__(self, after):
        self.left = after

    @property
    def is_wanted(self):
        self.left -= 1
        return self.left < 0


MAIL = Mail("me", Cancel("a"))


def test_the_loop_waits_only_when_the_actor_had_nothing_to_do():
    actor, mailbox = Countdown(), Script([MAIL, MAIL])
    happened = [turn(actor, mailbox, lambda: 5, 1.0) for _ in range(4)]
    assert mailbox.waits == [1.0, 0.0, 0.0, 1.0]
    assert happened == [True, True, True, False]
    assert mailbox.sent == [Send("me", Cancel("a"))] * 2 + [
        Send("peer", Cancel("1")), Send("peer", Cancel("0")),
    ]  # fmt: skip
    assert actor.seen[0] == (5, 7)


def test_the_loop_does_not_wait_for_an_actor_whose_work_ends_without_a_message():
    class Computing(Countdown):
        def advance(self, turn):
            return super().advance(turn) or None

    mailbox = Script([MAIL])
    assert [turn(Computing(), mailbox, lambda: 5, 1.0) for _ in range(2)] == [True, True]
    assert mailbox.waits == [0.0, 0.0]


def test_the_loop_beats_unless_all_that_it_does_is_to_wait_for_what_is_under_way():
    class Computing(Countdown):
        def advance(self, turn):
            return super().advance(turn) if self.credit != 1 else None

    beats = []
    mailbox = Script([], [MAIL], [], [MAIL])
    actor = Computing()
    counts = []
    for _ in range(5):
        turn(actor, mailbox, lambda: 5, 1.0, lambda: beats.append(None))
        counts.append(len(beats))
    assert counts == [1, 2, 2, 2, 3]


def test_a_lost_client_is_told_to_the_actor_in_order():
    actor = Countdown()
    turn(actor, Script([Lost("a"), MAIL, Lost("b")]), lambda: 0, 0.0)
    assert actor.lost_clients == ["a", "b"]
    assert actor.credit == 1


def test_a_drained_actor_finishes_its_work_first():
    actor, mailbox = Countdown(), Script([MAIL])
    run(actor, mailbox, Order(after=0), lambda: None, lambda: None)
    assert actor.is_draining
    assert mailbox.sent[-1] == Send("peer", Cancel("0"))


def test_a_drained_process_waits_until_what_it_said_has_left():
    mailbox = Script(is_flushed=False)

    def take(limit, wait_s):
        mailbox.waits.append(wait_s)
        mailbox.is_flushed = len(mailbox.waits) == 5
        return []

    mailbox.take = take
    run(Countdown(), mailbox, Order(after=0), lambda: None, lambda: None)
    assert mailbox.waits == [IDLE_WAIT_S] * 5


def test_ready_is_said_once_after_a_turn_with_every_link_open():
    said = []
    actor, mailbox = Countdown(), Script()
    mailbox.is_open = False

    def take(limit, wait_s):
        if len(actor.seen) == 3:
            mailbox.is_open = True
        return []

    mailbox.take = take
    run(actor, mailbox, Order(after=8), lambda: said.append(len(actor.seen)), lambda: None)
    assert said == [4]


def test_an_exception_of_the_actor_ends_the_loop():
    class Broken(Countdown):
        def receive(self, source, message, now_ns):
            raise AssertionError("numbers")

    with pytest.raises(AssertionError, match="numbers"):
        run(Broken(), Script([MAIL]), Order(after=99), lambda: None, lambda: None)


SIGNALLED = """
import time
from weft.runtime.loop import Drain
drain = Drain()
print("up", flush=True)
while not drain.is_wanted:
    time.sleep(0.01)
print("draining", flush=True)
time.sleep(3600)
"""


@pytest.mark.system
def test_the_first_signal_drains_and_the_second_ends_the_process_at_once():
    child = subprocess.Popen([sys.executable, "-c", SIGNALLED], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout.readline() == "up\n"
        child.send_signal(signal.SIGTERM)
        assert child.stdout.readline() == "draining\n"
        child.send_signal(signal.SIGTERM)
        assert child.wait(120) == 128 + signal.SIGTERM
