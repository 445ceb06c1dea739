import logging
import random
import time

import pytest
import zmq

from tests.runtime.runtime_harness import SMALL, messages, submit
from weft.runtime import transport
from weft.runtime.actor import Send
from weft.runtime.codec import FRAME_BYTES_MAX, encode
from weft.runtime.endpoint import Endpoint, Lost, Mail
from weft.runtime.messages import (
    Ack,
    Hello,
    ListModels,
    ModelEntry,
    Models,
    Refused,
    Submit,
    Welcome,
)
from weft.runtime.topology import CLIENT, address
from weft.runtime.transport import ZmqMailbox

MUTATIONS = 12_000
REFUSED = Refused("a", "code", "why")


class Ipc:
    """Mailboxes of the small topology on real sockets in one directory."""

    def __init__(self, run_dir):
        self.run_dir = run_dir
        self.boxes = []

    def join(self, role, identity=None, epoch=1):
        identity = identity or f"{role}.{epoch}.{len(self.boxes)}"
        endpoint = Endpoint(role, SMALL, identity=identity, epoch=epoch)
        box = ZmqMailbox(endpoint, SMALL, self.run_dir)
        self.boxes.append(box)
        return box

    def leave(self, box):
        self.boxes.remove(box)
        box.close()


@pytest.fixture
def ipc(tmp_path):
    ipc = Ipc(tmp_path)
    yield ipc
    for box in reversed(ipc.boxes):
        box.endpoint.check()
        box.close()


@pytest.fixture
def server(ipc):
    return ipc.join("server")


@pytest.fixture
def raw(tmp_path):
    """A function that opens a bare socket to the server: a program that keeps no rules."""
    context = zmq.Context()
    sockets = []

    def connect(identity):
        socket = context.socket(zmq.DEALER)
        sockets.append(socket)
        if identity:
            socket.setsockopt(zmq.IDENTITY, identity)
        socket.set_hwm(0)
        socket.connect(address(tmp_path, "server"))
        return socket

    yield connect
    context.destroy(linger=0)


def until(condition, *boxes, timeout_s=120.0):
    """Let mailboxes run until the condition holds; what arrives is kept in ``box.mail``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        for box in boxes:
            box.endpoint.arrived.extendleft(reversed(box.take(64, 0.001)))


def wait_for_frames(box, *ports):
    """Wait until something has come on each of a mailbox's sockets, without taking it."""
    for port in ports:
        assert box._sockets[port].poll(120_000)


def exchange(server, client, name, label):
    """One request and its answer, exact to the byte."""
    request = Submit(label, prompt=list(range(300)))
    client.send(Send("server", request))
    until(lambda: server.endpoint.arrived, server)
    assert messages(server) == [(name, request)]
    answer = Models(label, [ModelEntry("m", "/r", None, "ab", 8, 1, 2)])
    server.send(Send(name, answer))
    until(lambda: client.endpoint.arrived, client)
    assert messages(client) == [("server", answer)]


def frame(message, *, sequence=0, acknowledged=0, destination_epoch=1):
    return encode(
        message,
        source_epoch=1,
        destination_epoch=destination_epoch,
        sequence=sequence,
        acknowledged=acknowledged,
    )


HELLO = frame(Hello(8), destination_epoch=0)


def test_messages_travel_both_ways_whoever_starts_first(ipc):
    client, store = ipc.join(CLIENT, "me"), ipc.join("store")
    store.send(Send("server", Models("early", [])))
    server, back = ipc.join("server"), ipc.join("back")
    until(lambda: server.is_open and client.is_open, server, back, client, store)
    until(lambda: server.endpoint.arrived, server)
    assert messages(server) == [("store", Models("early", []))]
    server.send(Send("back", submit()))
    until(lambda: back.endpoint.arrived, back)
    assert messages(back) == [("server", submit())]
    exchange(server, client, "me", "a")


def test_taking_waits_for_the_first_message_but_not_longer(server):
    started = time.monotonic()
    assert server.take(8, 0.05) == []
    assert time.monotonic() - started > 0.04
    assert server.take(8, 0.0) == []


def test_a_batch_is_bounded(ipc, server):
    client = ipc.join(CLIENT, "me")
    until(lambda: client.is_open, server, client)
    for label in "abcdef":
        client.send(Send("server", submit(label)))
    until(lambda: len(server.endpoint.arrived) >= 3, server)
    assert len(server.take(2, 0.1)) == 2


def test_a_stream_longer_than_any_window_arrives_whole(ipc, server):
    client = ipc.join(CLIENT, "me")
    until(lambda: client.is_open, server, client)
    received = []
    for number in range(100):
        server.send(Send("me", Refused(str(number), "c", "m")))
    while len(received) < 100:
        until(lambda: client.endpoint.arrived, client, server)
        received += [message.label for _, message in messages(client)]
    assert received == [str(number) for number in range(100)]
    assert server.is_flushed


def test_a_client_that_was_killed_is_lost(ipc, server, raw, monkeypatch):
    monkeypatch.setattr(transport, "PROBE_INTERVAL_S", 0.02)
    socket = raw(b"me")
    socket.send(HELLO)
    until(lambda: server.room("me") == 8, server)
    socket.close(linger=0)
    until(lambda: server.endpoint.arrived, server)
    assert server.take(8, 0.0) == [Lost("me")]


def test_a_closed_mailbox_says_goodbye(ipc, server):
    client = ipc.join(CLIENT, "me")
    until(lambda: client.is_open, server, client)
    ipc.leave(client)
    until(lambda: server.endpoint.arrived, server)
    assert server.take(8, 0.0) == [Lost("me")]


def test_a_name_can_be_used_again_after_its_owner_died(ipc, server, raw, monkeypatch):
    monkeypatch.setattr(transport, "PROBE_INTERVAL_S", 0.02)
    first = raw(b"me")
    first.send(HELLO)
    first.send(frame(submit("old"), sequence=1))
    until(lambda: len(server.endpoint.arrived) == 1, server)
    first.close(linger=0)
    until(lambda: len(server.endpoint.arrived) == 2, server)
    assert server.take(2, 0.0) == [Mail("me", submit("old")), Lost("me")]
    second = ipc.join(CLIENT, "me")
    until(lambda: second.is_open, server, second)
    exchange(server, second, "me", "new")


def test_two_living_clients_of_one_name_do_not_mix(ipc, server):
    first = ipc.join(CLIENT, "me")
    until(lambda: first.is_open, server, first)
    second = ipc.join(CLIENT, "me")
    for _ in range(10):
        server.take(8, 0.005)
        second.take(8, 0.005)
    assert not second.is_open  # the name is taken
    exchange(server, first, "me", "a")


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([b"garbage"], "malformed"),
        ([b""], "malformed"),
        ([HELLO[:-1]], "malformed"),
        ([HELLO[:1] + b"\x07" + HELLO[2:]], "version"),
        ([b"", HELLO], "parts"),
        ([HELLO, HELLO], "parts"),
        ([frame(submit(), sequence=1)], "unopened"),
        ([frame(Welcome(8))], "unopened"),
        ([frame(Ack())], "unopened"),
        ([frame(Models("a", []), sequence=1)], "malformed"),
    ],
)
def test_a_bad_frame_is_counted_and_hurts_nobody_else(ipc, server, raw, parts, reason):
    client = ipc.join(CLIENT, "me")
    until(lambda: client.is_open, server, client)
    raw(b"villain").send_multipart(parts)
    until(lambda: server.endpoint.faults, server)
    assert server.endpoint.faults == {reason: 1}
    exchange(server, client, "me", "a")


def test_a_socket_without_a_name_is_refused(ipc, server, raw):
    raw(None).send(HELLO)
    until(lambda: server.endpoint.faults, server)
    assert server.endpoint.faults == {"identity": 1}


def test_a_frame_too_large_never_reaches_the_decoder(ipc, server, raw):
    client = ipc.join(CLIENT, "me")
    until(lambda: client.is_open, server, client)
    villain = raw(b"villain")
    villain.send(bytes(FRAME_BYTES_MAX + 1))
    exchange(server, client, "me", "a")
    for _ in range(20):
        server.take(8, 0.005)
    assert not server.endpoint.faults
    exchange(server, client, "me", "b")


def test_a_client_that_connects_and_never_reads_is_dropped(ipc, server, raw):
    client = ipc.join(CLIENT, "me")
    raw(b"silent").send(HELLO)
    until(lambda: client.is_open and server.room("silent"), server, client)
    for _ in range(2000):
        server.send(Send("silent", REFUSED))
    assert Lost("silent") in server.take(8, 0.0)
    server.take(2000, 0.0)
    exchange(server, client, "me", "a")


def test_a_flood_of_one_client_leaves_room_for_another(ipc, server, raw):
    client = ipc.join(CLIENT, "me")
    until(lambda: client.is_open, server, client)
    villain = raw(b"villain")
    for _ in range(20_000):
        villain.send(b"garbage")
    exchange(server, client, "me", "a")


def test_a_flood_through_one_socket_does_not_hold_up_another(ipc, server, raw):
    client, back = ipc.join(CLIENT, "me"), ipc.join("back")
    villain = raw(b"villain")
    until(lambda: server.room("back") and client.is_open, server, client, back)
    for _ in range(1000):
        villain.send(b"garbage")
    back.send(Send("server", REFUSED))
    wait_for_frames(server, "server", "back")
    assert server.take(8, 0.0) == [Mail("back", REFUSED)]


def test_a_flood_does_not_hold_up_the_loop(server, raw):
    villain = raw(b"villain")
    for _ in range(1000):
        villain.send(b"garbage")
    wait_for_frames(server, "server")
    server.take(8, 0.0)
    assert server.endpoint.faults.total() <= 8 * transport.FRAMES_PER_MESSAGE_MAX


def test_dropped_frames_are_logged_at_a_limited_rate(server, raw, caplog, monkeypatch):
    monkeypatch.setattr(transport, "FAULT_LOG_INTERVAL_S", 60.0)
    villain = raw(b"villain")
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            villain.send(b"garbage")
        until(lambda: server.endpoint.faults["malformed"] == 100, server)
    assert len(caplog.records) == 1
    assert "b'villain' through server: malformed" in caplog.text


def mutate(random, recorded):
    """One of the recorded frames, damaged in a few of the ways in which bytes get damaged."""
    data = bytearray(random.choice(recorded))
    for _ in range(random.randint(1, 4)):
        position = random.randrange(len(data) + 1)
        match random.randrange(6):
            case 0 if position < len(data):
                data[position] = random.randrange(256)
            case 1 if position < len(data):
                data[position] ^= 1 << random.randrange(8)
            case 2:
                del data[position:]
            case 3:
                data[position:position] = random.randbytes(random.randint(1, 8))
            case 4:
                other = random.choice(recorded)
                data[position:] = other[random.randrange(len(other)) :]
            case 5:
                del data[position : position + random.randint(1, 8)]
    return bytes(data)


@pytest.mark.parametrize("seed", [1, 2])
def test_thousands_of_damaged_frames_of_real_traffic_hurt_nobody(ipc, server, raw, seed):
    client, store, back = ipc.join(CLIENT, "me"), ipc.join("store"), ipc.join("back")
    everyone = (server, client, store, back)
    until(lambda: server.is_open and client.is_open, *everyone)
    recorded = [
        HELLO,
        frame(submit(), sequence=1),
        frame(ListModels("b"), sequence=2, acknowledged=1),
        frame(Submit("c", prompt=[1, 2, 3], model="kitten"), sequence=3),
        frame(Ack(), acknowledged=2),
        frame(Models("d", [ModelEntry("m", "/r", None, "ab", 8, 1, 2)]), sequence=1),
    ]
    random_ = random.Random(seed)
    villains = [raw(name) for name in (b"v1", b"v2", b"v3", b"store.9.evil", b"back.1.evil")]
    for _ in range(MUTATIONS // 2):
        villain = random_.choice(villains)
        if random_.random() < 0.1:
            villain.send(HELLO)  # so that some damage meets an open link
        villain.send(mutate(random_, recorded))
        server.take(64, 0.0)
    for villain in villains:
        villain.send_multipart([b"the", b"end"])  # no damage is of this kind
    while server.endpoint.faults["parts"] < len(villains):
        server.take(4096, 0.02)
    assert server.endpoint.faults.total() > MUTATIONS // 4
    assert {"malformed", "version", "unopened"} <= set(server.endpoint.faults)
    server.endpoint.check()
    exchange(server, client, "me", "after")
