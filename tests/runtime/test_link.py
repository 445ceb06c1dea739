from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from weft.runtime.codec import Decoder
from weft.runtime.link import Link, LinkError
from weft.runtime.messages import Ack, Cancel, Goodbye, Hello, Welcome

decode = Decoder(Cancel)


class Wire:
    """Two links and the frames on their way, in order within each direction."""

    def __init__(self, left_window=4, right_window=4, outbox_max=4096):
        self.links = [
            Link(epoch=3, window=left_window, connects=True, outbox_max=outbox_max),
            Link(epoch=5, window=right_window, connects=False, outbox_max=outbox_max),
        ]
        self.moving = [deque(), deque()]  # from left, from right
        self.received = [[], []]  # by left, by right

    def open(self):
        self.moving[0].extend(self.links[0].open())

    def send(self, side, label):
        self.moving[side].extend(self.links[side].send(Cancel(label)))

    def deliver(self, side):
        """Bring the oldest frame of ``side`` across."""
        message, replies = self.links[1 - side].receive(*decode(self.moving[side].popleft()))
        self.moving[1 - side].extend(replies)
        if message is not None:
            self.received[1 - side].append(message.label)

    def settle(self):
        while any(self.moving):
            for side in (0, 1):
                while self.moving[side]:
                    self.deliver(side)


@pytest.fixture
def wire():
    wire = Wire()
    wire.open()
    wire.settle()
    yield wire
    for link in wire.links:
        link.check()


def test_messages_wait_until_the_handshake_is_done():
    wire = Wire()
    wire.send(0, "early")
    assert not wire.moving[0]
    wire.open()
    wire.settle()
    assert wire.received[1] == ["early"]


def test_credit_stops_a_sender_and_acknowledgement_lets_it_go_on(wire):
    for label in "abcdef":
        wire.send(0, label)
    assert len(wire.moving[0]) == 4
    assert wire.links[0].room == 0
    assert not wire.links[0].is_flushed
    wire.settle()
    assert wire.received[1] == list("abcdef")
    assert wire.links[0].is_flushed


def test_room_counts_what_would_leave_at_once(wire):
    assert wire.links[0].room == 4
    wire.send(0, "a")
    assert wire.links[0].room == 3


def test_an_acknowledgement_comes_by_itself_after_half_a_window(wire):
    wire.send(0, "a")
    wire.deliver(0)
    assert not wire.moving[1]
    wire.send(0, "b")
    wire.deliver(0)
    assert isinstance(decode(wire.moving[1][0])[1], Ack)


def test_an_actor_that_ignores_credit_is_stopped():
    link = Wire(outbox_max=2).links[0]
    link.send(Cancel("a"))
    link.send(Cancel("b"))
    with pytest.raises(AssertionError, match="ignores the room"):
        link.send(Cancel("c"))


def break_rule(wire, reason, frame=None):
    with pytest.raises(LinkError) as caught:
        wire.links[1].receive(*decode(frame or wire.moving[0].popleft()))
    assert caught.value.reason == reason


def test_a_frame_before_hello_is_refused():
    wire = Wire()
    other = Wire()
    other.open()
    other.settle()
    other.send(0, "a")
    break_rule(wire, "unopened", other.moving[0].popleft())


def test_a_repeated_frame_is_refused(wire):
    wire.send(0, "a")
    frame = wire.moving[0][0]
    wire.settle()
    break_rule(wire, "sequence", frame)
    assert wire.received[1] == ["a"]


def test_a_frame_after_a_gap_is_refused(wire):
    wire.send(0, "lost")
    wire.moving[0].clear()
    wire.send(0, "b")
    break_rule(wire, "sequence")


def test_a_frame_from_another_life_is_refused(wire):
    stranger = Wire()
    stranger.links[0] = Link(epoch=4, window=4, connects=True)
    stranger.open()
    stranger.settle()
    stranger.send(0, "a")
    break_rule(wire, "fenced", stranger.moving[0].popleft())


def test_an_acknowledgement_of_what_was_never_sent_is_refused(wire):
    other = Wire()
    other.open()
    other.settle()
    for label in "ab":
        other.send(1, label)
    other.settle()
    other.send(0, "c")
    break_rule(wire, "acknowledgement", other.moving[0].popleft())


def test_a_second_hello_is_refused(wire):
    wire.open()
    break_rule(wire, "handshake")


def test_two_sides_of_the_same_kind_are_refused():
    wire = Wire()
    wire.open()
    with pytest.raises(LinkError, match="handshake"):
        wire.links[0].receive(*decode(wire.moving[0][0]))


@pytest.mark.parametrize("window", [-1, 0, 1])
def test_a_window_without_credit_is_refused(window):
    wire = Wire()
    wire.links[0]._window = window
    wire.open()
    break_rule(wire, "handshake")


def test_goodbye_is_said_only_on_an_open_link(wire):
    assert isinstance(decode(wire.links[0].close()[0])[1], Goodbye)
    assert Wire().links[0].close() == []


def test_a_probe_changes_nothing(wire):
    wire.send(1, "a")
    wire.moving[0].extend(wire.links[0].probe())
    wire.settle()
    assert wire.received[0] == ["a"]
    assert Wire().links[0].probe() == []


def test_the_handshake_is_hello_then_welcome():
    wire = Wire(left_window=6, right_window=2)
    wire.open()
    assert decode(wire.moving[0][0])[1] == Hello(6)
    wire.deliver(0)
    assert decode(wire.moving[1][0])[1] == Welcome(2)


class AnyInterleaving(RuleBasedStateMachine):
    """Whatever the order of sends and deliveries, everything arrives, once and in order."""

    def __init__(self):
        super().__init__()
        self.wire = Wire(left_window=3, right_window=7)
        self.wire.open()
        self.sent = [[], []]

    @rule(side=st.integers(0, 1), count=st.integers(1, 12))
    def send(self, side, count):
        for _ in range(count):
            label = str(len(self.sent[side]))
            self.sent[side].append(label)
            self.wire.send(side, label)

    @precondition(lambda self: any(self.wire.moving))
    @rule(side=st.integers(0, 1), count=st.integers(1, 9))
    def deliver(self, side, count):
        for _ in range(min(count, len(self.wire.moving[side]))):
            self.wire.deliver(side)

    @invariant()
    def links_are_sound(self):
        for side, link in enumerate(self.wire.links):
            link.check()
            received = self.wire.received[1 - side]
            assert received == self.sent[side][: len(received)]

    def teardown(self):
        self.wire.settle()
        assert self.wire.received == self.sent[::-1]
        assert all(link.is_flushed for link in self.wire.links)


TestAnyInterleaving = AnyInterleaving.TestCase
TestAnyInterleaving.settings = settings(derandomize=True, deadline=None, max_examples=100)
