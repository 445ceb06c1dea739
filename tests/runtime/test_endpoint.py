import msgspec
import pytest

from tests.runtime.runtime_harness import SMALL, messages, submit
from weft.runtime.actor import Send
from weft.runtime.codec import Decoder, encode
from weft.runtime.endpoint import CLIENT_WAITING_MAX, JAM_WAITING, Endpoint, Lost, Mail
from weft.runtime.identity import process_identity
from weft.runtime.inprocess import Network
from weft.runtime.messages import Goodbye, Hello, ListModels, Models, Refused
from weft.runtime.topology import CLIENT

KEY = bytes(range(16))
REFUSED = Refused("a", "code", "why")


class Town:
    """Every role of the small topology, joined as asked for."""

    def __init__(self):
        self.network = Network(SMALL)
        self.boxes = {}

    def join(self, role, identity=None, epoch=1):
        identity = identity or f"{role}.{epoch}.x"
        self.boxes[identity] = self.network.join(role, identity=identity, epoch=epoch)
        return self.boxes[identity]

    def settle(self):
        """Let every endpoint see what has come, without taking any mail."""
        for _ in range(4):
            for box in self.boxes.values():
                box.endpoint.arrived.extendleft(reversed(box.take(64, 0.0)))


@pytest.fixture
def town():
    town = Town()
    yield town
    for box in town.boxes.values():
        box.endpoint.check()


@pytest.fixture
def server(town):
    return town.join("server")


def say_hello(endpoint, identity, *, epoch=1, window=8):
    frame = encode(
        Hello(window), source_epoch=epoch, destination_epoch=0, sequence=0, acknowledged=0
    )
    endpoint.receive("server", identity, [frame])


def test_a_message_arrives_with_the_name_of_its_sender(town, server):
    client, store = town.join(CLIENT, "me"), town.join("store")
    town.settle()
    client.send(Send("server", submit()))
    store.send(Send("server", Models("a", [])))
    assert messages(server) == [("me", submit()), ("store", Models("a", []))]
    server.send(Send("me", REFUSED))
    assert messages(client) == [("server", REFUSED)]


def test_what_is_sent_before_a_process_exists_waits_for_it(town, server):
    server.send(Send("store", ListModels("a")))
    server.send(Send("back", submit()))
    store, back = town.join("store"), town.join("back")
    town.settle()
    assert messages(store) == [("server", ListModels("a"))]
    assert messages(back) == [("server", submit())]


def test_an_endpoint_is_open_once_every_process_that_it_needs_has_answered(town, server):
    assert not server.is_open
    town.join("store")
    town.settle()
    assert not server.is_open
    town.join("back")
    town.settle()
    assert server.is_open


def test_a_client_cannot_say_what_only_a_process_may(town, server):
    client = town.join(CLIENT, "me")
    town.settle()
    # The client's own endpoint does not know what the server's will refuse.
    client.send(Send("server", Models("forged", [])))
    assert messages(server) == []
    assert server.endpoint.faults == {"malformed": 1}


def say(endpoint, message, sequence, **header):
    """Have the client "me" say something that no encoder of ours would write."""
    header = {"source": 1, "destination": 1, "acknowledged": 0} | header
    frame = [
        1, header["source"], header["destination"], sequence, header["acknowledged"], message
    ]  # fmt: skip
    endpoint.receive("server", b"me", [msgspec.msgpack.encode(frame)])


def refusals(endpoint):
    decode = Decoder(Refused | Models)
    heard = [decode(parcel.frame)[1] for parcel in endpoint.outgoing]
    return [message for message in heard if isinstance(message, Refused)]


@pytest.mark.parametrize(
    ("message", "param", "text"),
    [
        (["Submit", "a", None, None, "x", {"temperature": "hot"}], "sampling.temperature", "float"),
        (["Submit", "a", None, None, "x", {"temprature": 1}], "sampling", "`temprature`"),
        (["Submit", "a", None, [{"role": 1}]], "messages[0].role", "Expected `str`, got `int`"),
        (["Submit", "a", 5], "model", "Expected `str | null`, got `int`"),
        (["Submit", "a", None, None, "x", {}, None, None, 0, None, "more"], None, "array"),
        (["Models", "a", []], None, "Invalid value 'Models'"),
        (["Submit", "a", None, None, "x", {"x" * 1_000_000: 1}], "sampling", "unknown field"),
    ],
)
def test_a_client_is_told_what_cannot_be_read_and_is_heard_again(server, message, param, text):
    endpoint = server.endpoint
    say_hello(endpoint, b"me")
    say(endpoint, message, 1)
    say(endpoint, ["ListModels", "b"], 2)
    [refused] = refusals(endpoint)
    assert (refused.label, refused.code, refused.param) == ("a", "invalid_value", param)
    assert text in refused.message
    assert len(refused.message) < 400
    assert endpoint.faults == {"malformed": 1}
    assert messages(server) == [("me", ListModels("b"))]


@pytest.mark.parametrize("label", [7, None, "x" * 2000])
def test_what_names_no_request_is_not_answered_but_counts(server, label):
    say_hello(server.endpoint, b"me")
    say(server.endpoint, ["Submit", label, 5], 1)
    say(server.endpoint, ["ListModels", "b"], 2)
    assert not refusals(server.endpoint)
    assert messages(server) == [("me", ListModels("b"))]


@pytest.mark.parametrize(
    ("sequence", "header", "reason"),
    [
        (2, {}, "sequence"),
        (1, {"source": 2}, "fenced"),
        (1, {"acknowledged": 5}, "acknowledgement"),
        (0, {}, "malformed"),
    ],
)
def test_what_cannot_be_read_must_keep_the_links_rules_all_the_same(
    server, sequence, header, reason
):
    say_hello(server.endpoint, b"me")
    say(server.endpoint, ["Submit", "a", 5], sequence, **header)
    assert server.endpoint.faults == {reason: 1}
    assert not refusals(server.endpoint)


def test_nobody_is_told_before_hello(server):
    say(server.endpoint, ["Submit", "a", 5], 1)
    assert server.endpoint.faults == {"malformed": 1}
    assert not server.endpoint.outgoing


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        (b"", "identity"),
        (b"\x00\x01\x02\x03\x04", "identity"),  # what ZeroMQ makes up for a nameless socket
        (b"\xff\xfe", "identity"),
        (b"back.1.x", "stranger"),
        (b"server", "stranger"),
    ],
)
def test_a_name_that_no_client_may_have_is_refused(server, identity, reason):
    say_hello(server.endpoint, identity)
    assert server.endpoint.faults == {reason: 1}
    assert not server.endpoint.outgoing


def test_a_stranger_is_refused_where_no_clients_are_expected(town):
    back = town.join("back")
    say = encode(Hello(8), source_epoch=1, destination_epoch=0, sequence=0, acknowledged=0)
    back.endpoint.receive("back", b"me", [say])
    assert back.endpoint.faults == {"stranger": 1}


def test_a_message_of_several_parts_is_refused(server):
    server.endpoint.receive("server", b"me", [b"", b"frame"])
    server.endpoint.receive("back", b"", [])
    assert server.endpoint.faults == {"parts": 2}


def test_a_client_that_says_goodbye_is_lost_and_its_name_is_free_again(town, server):
    client = town.join(CLIENT, "me")
    town.settle()
    client.close()
    del town.boxes["me"]
    assert server.take(64, 0.0) == [Lost("me")]
    again = town.join(CLIENT, "me")
    town.settle()
    again.send(Send("server", submit()))
    assert messages(server) == [("me", submit())]


def test_a_new_life_under_the_same_name_comes_after_the_loss_of_the_former(town, server):
    client = town.join(CLIENT, "me")
    town.settle()
    client.send(Send("server", submit("old")))
    again = town.join(CLIENT, "me")
    again.send(Send("server", submit("new")))
    town.settle()
    assert server.take(64, 0.0) == [
        Mail("me", submit("old")), Lost("me"), Mail("me", submit("new")),
    ]  # fmt: skip


def test_a_message_to_a_client_without_a_link_is_a_loss(server):
    assert server.room("nobody") == 1  # an actor that waits for room finds out
    server.send(Send("nobody", REFUSED))
    assert server.take(64, 0.0) == [Lost("nobody")]


def test_a_message_to_a_process_without_an_edge_is_a_bug(town):
    back = town.join("back")
    with pytest.raises(AssertionError, match="no link to store"):
        back.send(Send("store", ListModels("a")))
    with pytest.raises(AssertionError, match="no link to store"):
        back.room("store")


def test_a_client_that_does_not_read_is_dropped_and_the_others_are_served(town, server):
    town.join(CLIENT, "slow")
    other = town.join(CLIENT, "other")
    town.settle()
    # Without a turn of its own, the slow client never acknowledges.
    for _ in range(8 + CLIENT_WAITING_MAX + 1):
        server.send(Send("slow", REFUSED))
    assert server.take(64, 0.0) == [Lost("slow")]
    assert server.endpoint.faults == {"slow": 1}
    server.send(Send("other", REFUSED))
    assert messages(other) == [("server", REFUSED)]


def test_a_client_that_is_gone_is_found_out_by_a_probe(town, server):
    client = town.join(CLIENT, "me")
    town.settle()
    town.network.leave(client.endpoint)  # as a process that was killed
    for _ in range(2):  # heard since the last probe, then not
        server.endpoint.probe()
        town.network.carry(server.endpoint)
    assert server.take(64, 0.0) == [Lost("me")]


def test_a_silent_client_that_lives_survives_probes(town, server):
    client = town.join(CLIENT, "me")
    for _ in range(5):
        town.settle()
        server.endpoint.probe()
        town.network.carry(server.endpoint)
    client.send(Send("server", submit()))
    assert messages(server) == [("me", submit())]


def test_one_client_too_many_is_turned_away(town):
    endpoint = Endpoint("server", SMALL, identity="server.1.x", clients_max=2)
    for name in (b"a", b"b", b"c"):
        say_hello(endpoint, name)
    assert endpoint.faults == {"clients": 1}
    assert endpoint.outgoing[-1].identity == "c"
    assert b"Goodbye" in endpoint.outgoing[-1].frame
    assert endpoint.room("a") == 8
    endpoint.check()


def test_the_next_life_of_a_process_comes_after_the_loss_of_the_former(town, server):
    first = town.join("store", epoch=1)
    town.settle()
    first.send(Send("server", Models("old", [])))
    second = town.join("store", epoch=2)
    second.send(Send("server", Models("new", [])))
    town.settle()
    first.send(Send("server", Models("late", [])))
    assert server.take(64, 0.0) == [
        Mail("store", Models("old", [])), Lost("store"), Mail("store", Models("new", [])),
    ]  # fmt: skip


def test_a_newer_life_of_a_process_replaces_the_older_but_not_the_other_way_round(town, server):
    town.join("store", epoch=2)
    town.settle()
    say_hello(server.endpoint, b"store.1.late", epoch=1)
    assert server.endpoint.faults == {"fenced": 1}
    newer = town.join("store", "store.3.x", epoch=3)
    town.settle()
    server.send(Send("store", ListModels("a")))
    assert messages(newer) == [("server", ListModels("a"))]
    # The older one is not heard any more.
    town.boxes["store.2.x"].send(Send("server", Models("late", [])))
    assert messages(server) == []


@pytest.mark.parametrize(
    ("identity", "epoch", "is_heard"),
    [
        (process_identity("store", 2, KEY), 2, True),
        (process_identity("store", 1, KEY), 2, False),  # another life's
        (process_identity("back", 2, KEY), 2, False),
        (process_identity("store", 2, bytes(16)), 2, False),
        ("store.2.x", 2, False),
        ("store", 2, False),
    ],
)
def test_who_does_not_know_the_runs_key_cannot_take_a_processs_place(identity, epoch, is_heard):
    server = Endpoint("server", SMALL, identity="server.1.x", key=KEY)
    true_identity = process_identity("store", 1, KEY)
    say_hello(server, true_identity.encode())
    server.outgoing.clear()
    say_hello(server, identity.encode(), epoch=epoch)
    server.send("store", ListModels("a"))
    assert server.outgoing[-1].identity == (identity if is_heard else true_identity)
    assert server.faults == ({} if is_heard else {"stranger": 1})


def test_a_hello_without_credit_leaves_a_processs_waiting_messages_in_place(town, server):
    server.send(Send("store", ListModels("a")))
    say_hello(server.endpoint, b"store.1.odd", window=0)
    assert server.endpoint.faults == {"handshake": 1}
    store = town.join("store")
    town.settle()
    assert messages(store) == [("server", ListModels("a"))]


def test_a_client_whose_hello_is_refused_takes_no_place():
    endpoint = Endpoint("server", SMALL, identity="server.1.x", clients_max=1)
    say_hello(endpoint, b"odd", window=1)
    say_hello(endpoint, b"sound")
    assert endpoint.faults == {"handshake": 1}
    assert endpoint.room("sound") == 8


def test_what_is_for_a_process_that_left_on_purpose_is_dropped(town, server):
    store = town.join("store")
    town.settle()
    store.close()
    del town.boxes["store.1.x"]
    town.settle()
    server.send(Send("store", ListModels("a")))
    assert server.endpoint.faults == {"departed": 1}
    assert server.is_flushed


def test_while_the_way_out_is_jammed_no_new_work_is_heard(town, server):
    client, back = town.join(CLIENT, "me"), town.join("back")
    town.settle()
    for _ in range(8 + JAM_WAITING):
        server.send(Send("back", submit()))
    client.send(Send("server", submit()))
    assert messages(server) == []
    received = 0
    while received < 8 + JAM_WAITING:
        received += len(messages(back))
        assert len(server.endpoint.arrived) == 0
        server.endpoint.arrived.extendleft(reversed(server.take(64, 0.0)))
        if server.endpoint.arrived:
            break
    assert server.take(64, 0.0) == [Mail("me", submit())]


def test_closing_tells_everyone(town, server):
    client, back = town.join(CLIENT, "me"), town.join("back")
    town.settle()
    server.endpoint.close()
    assert [parcel.port for parcel in server.endpoint.outgoing] == ["back", "server"]
    assert all(b"Goodbye" in parcel.frame for parcel in server.endpoint.outgoing)
    assert client.endpoint.is_open
    assert back.endpoint.is_open


def test_goodbye_before_hello_means_nothing(server):
    frame = encode(Goodbye(), source_epoch=1, destination_epoch=1, sequence=0, acknowledged=0)
    server.endpoint.receive("server", b"me", [frame])
    assert server.endpoint.faults == {"unopened": 1}
