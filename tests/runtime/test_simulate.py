import pytest

from tests.runtime.runtime_harness import SMALL
from weft.runtime.actor import Send
from weft.runtime.endpoint import PROBE_INTERVAL_S, Endpoint
from weft.runtime.messages import ListModels, Models, Refused, Submit
from weft.runtime.simulate import Conditions, World
from weft.runtime.topology import CLIENT

REQUESTS = 300


class Passing:
    """The server: passes every request on to ``back`` and every refusal to the one who asked."""

    def __init__(self):
        self.asked = {}

    def receive(self, source, message, now_ns):
        match message:
            case Submit(label):
                self.asked[label] = source
                return [Send("back", message)]
            case Refused(label):
                return [Send(self.asked.pop(label), message)]
            case ListModels(label):
                return [Send(source, Models(label, []))]

    def advance(self, turn):
        return []

    def lost(self, peer, now_ns):
        self.asked = {label: client for label, client in self.asked.items() if client != peer}
        return []

    def check(self):
        pass


class Refusing(Passing):
    def receive(self, source, message, now_ns):
        return [Send(source, Refused(message.label, "no", "never"))]


class Asking(Passing):
    """A client that asks as fast as its credit allows."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.sent = 0
        self.answers = []
        self.times_ns = []

    def receive(self, source, message, now_ns):
        self.answers.append(message.label)
        self.times_ns.append(now_ns)
        return []

    def advance(self, turn):
        room = min(turn.room("server"), REQUESTS - self.sent)
        first, self.sent = self.sent, self.sent + room
        return [
            Send("server", Submit(f"{self.name}{number}", prompt="x"))
            for number in range(first, self.sent)
        ]


def play(seed, **options):
    world = World(seed, topology=SMALL, **options)
    clients = [Asking(name) for name in ("a", "b", "c")]
    for client in clients:
        world.spawn(CLIENT, client, name=client.name)
    world.spawn("server", Passing())
    world.spawn("back", Refusing())
    world.run_until(lambda: all(len(client.answers) == REQUESTS for client in clients))
    world.check()
    return world, clients


@pytest.mark.parametrize("seed", range(5))
def test_every_request_is_answered_once_and_in_order_whatever_the_delays(seed):
    _, clients = play(seed)
    for client in clients:
        assert client.answers == [f"{client.name}{number}" for number in range(REQUESTS)]


def test_a_seed_names_one_run():
    digests = [play(seed)[0].digest for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_time_is_virtual_and_passes_as_the_conditions_say():
    _, fast = play(1, conditions=Conditions((1_000, 1_000), (1_000, 1_000)))
    _, slow = play(1, conditions=Conditions((10_000_000, 10_000_000), (1_000, 1_000)))
    # Each batch of eight credits takes a way there and back, through two links.
    assert slow[0].times_ns[-1] > 100 * fast[0].times_ns[-1]
    assert slow[0].times_ns == sorted(slow[0].times_ns)


def test_what_never_happens_is_a_timeout_that_names_its_seed():
    world = World(7, topology=SMALL)
    world.spawn("server", Passing())
    with pytest.raises(TimeoutError, match="seed 7"):
        world.run_until(lambda: False, limit_s=5.0)
    assert 4.9e9 < world.now_ns < 5.2e9


def test_a_slow_actor_takes_its_own_time():
    world = World(1, topology=SMALL)
    hare, snail = Asking("hare"), Asking("snail")
    world.spawn(CLIENT, hare, name="hare")
    world.spawn(CLIENT, snail, name="snail", turn_ns=(100_000_000, 200_000_000))
    world.spawn("server", Passing())
    world.spawn("back", Refusing())
    world.run_until(lambda: len(snail.answers) == REQUESTS)
    assert hare.times_ns[-1] * 10 < snail.times_ns[-1]


def test_who_is_paused_takes_up_where_it_was():
    world = World(1, topology=SMALL)
    asking = Asking("a")
    world.spawn(CLIENT, asking, name="a")
    world.spawn("server", Passing())
    world.spawn("back", Refusing())
    world.run_until(lambda: asking.answers)
    world.pause("server", 10.0)
    answered = len(asking.answers)
    paused_ns = world.now_ns
    world.run_until(lambda: world.now_ns > paused_ns + 9.9e9)
    assert len(asking.answers) <= answered + 8  # what was on its way
    world.run_until(lambda: len(asking.answers) == REQUESTS)


class Losing(Passing):
    """A server that notes whom it lost, and when."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def lost(self, peer, now_ns):
        self.losses.append((peer, now_ns))
        return super().lost(peer, now_ns)


@pytest.mark.parametrize("leave", ["kill", "retire"])
def test_a_client_that_is_gone_is_lost_though_nobody_has_anything_to_tell_it(leave):
    world = World(1, topology=SMALL)
    server = Losing()
    world.spawn("server", server)
    world.spawn("back", Refusing())
    world.spawn(CLIENT, Asking("a"), name="a")
    world.run_until(lambda: world.now_ns > 6e9)
    assert server.losses == []
    if leave == "kill":
        world.kill("a")
    else:
        world.retire("a")
    left_ns = world.now_ns
    world.run_until(lambda: server.losses)
    ((peer, lost_ns),) = server.losses
    assert peer == "a"
    # One that says Goodbye is known to be gone at once, any other at the second probe.
    assert lost_ns - left_ns < (0.1 if leave == "retire" else 3 * PROBE_INTERVAL_S) * 1e9


def test_a_fault_in_a_link_is_seen(monkeypatch):
    monkeypatch.setattr(Endpoint, "receive", lambda *_: None)  # every frame is lost
    with pytest.raises(TimeoutError):
        play(1)
