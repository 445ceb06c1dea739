"""Runners that are killed or stopped in the middle of many answers: nobody loses a token."""

import asyncio
import os
import random
import signal
import time

import httpx
import pytest

from tests.system.chats import MODELS
from tests.system.runs import TIMEOUT_S
from weft.runtime.client import AsyncClient, Finished, Text

pytestmark = pytest.mark.system

STREAMS = 16
TOKENS = 150

# Long enough for a busy machine, and short enough to wait for.
WATCHDOG_S = 8.0


class Disturbance:
    """Something that happens once so many streams, or all, have got so many texts."""

    def __init__(self, do, *, after_texts, streams=STREAMS):
        self._do = do
        self._waiting = streams
        self._after_texts = after_texts

    def text(self, number):
        if number == self._after_texts:
            self._waiting -= 1
            if self._waiting == 0:
                self._do()


async def streams(server, disturbance=None):
    """The texts of many requests, four adapters and the base, and how each one ended."""
    async with await AsyncClient.connect(server.run_dir) as client:

        async def one(number):
            texts, ends = [], []
            events = client.generate(
                prompt="The",
                model=MODELS[number % len(MODELS)],
                max_tokens=TOKENS,
                seed=number,
                temperature=0.8,
                ignore_eos=True,
            )
            async for event in events:
                match event:
                    case Text(_, text):
                        texts.append(text)
                        if disturbance is not None:
                            disturbance.text(len(texts))
                    case Finished():
                        ends.append((event.reason, event.output_tokens))
            assert ends == [("length", TOKENS)]
            return "".join(texts)

        async with asyncio.timeout(2 * TIMEOUT_S):
            return await asyncio.gather(*(one(number) for number in range(STREAMS)))


def assert_it_goes_on_as_if_nothing_had_happened(server, expected, disturb, *, after_texts=20):
    """Assert that streams give the same tokens when something happens in the middle of them."""
    before = server.processes()
    disturbance = Disturbance(disturb, after_texts=after_texts)
    assert asyncio.run(streams(server, disturbance)) == expected
    after = server.processes()
    runners = {role for role in before if role.startswith("runner")}
    assert before.keys() == after.keys()
    assert {role for role in before if before[role] != after[role]} == runners
    server.assert_all_is_back()


def lost(server):
    return server.state()["sections"]["scheduler"]["runners_lost_total"]


@pytest.mark.parametrize(
    ("ranks", "role", "number"),
    [
        (1, "runner0", signal.SIGKILL),
        (2, "runner0", signal.SIGKILL),
        (2, "runner1", signal.SIGKILL),
        (1, "runner0", signal.SIGSTOP),
        (2, "runner1", signal.SIGSTOP),
        (2, "runner0", signal.SIGABRT),
    ],
)
def test_streams_go_on_with_the_same_tokens_when_a_rank_falls_out(serve, ranks, role, number):
    server = serve(tensor_parallel_size=ranks, watchdog_timeout_s=WATCHDOG_S)
    expected = asyncio.run(streams(server))
    assert len(set(expected)) == STREAMS
    assert_it_goes_on_as_if_nothing_had_happened(
        server, expected, lambda: os.kill(server.processes()[role], number)
    )
    assert lost(server) == 1
    server.stop()
    assert server.end()[0] == 0, server.log.read_text()
    server.assert_nothing_is_left()
    log = server.log.read_text()
    says = {
        signal.SIGKILL: f"{role} was killed by SIGKILL",
        signal.SIGABRT: f"{role} was killed by SIGABRT",
        signal.SIGSTOP: f"runner0 has not got on for {WATCHDOG_S:g} s",
    }
    # Of two that end at the same time the launcher may see the other one first, which names it.
    named = (says[number], f"RankLost: rank {role.removeprefix('runner')} (process")
    assert any(text in log for text in named), log


def test_while_runners_are_away_weft_is_there_takes_requests_and_is_not_ready(serve):
    server = serve()
    ready = [httpx.get(f"{server.url}/ready", timeout=TIMEOUT_S).status_code]
    os.kill(server.processes()["runner0"], signal.SIGKILL)
    body = {"model": "math", "prompt": "The", "max_tokens": 8, "ignore_eos": True}
    reasons = set()
    with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client:
        deadline = time.monotonic() + TIMEOUT_S
        while ready[-1] == 200:
            assert time.monotonic() < deadline
            ready.append(client.get("/ready").status_code)
        assert client.get("/health").status_code == 200
        reasons.add(client.get("/ready").json()["error"]["message"])
        answer = client.post("/v1/completions", json=body).json()
        assert answer["usage"]["completion_tokens"] == 8
        assert client.get("/ready").status_code == 200
    [reason] = reasons
    assert "being started again; requests are taken, and wait" in reason
    assert lost(server) == 1


def test_runners_that_are_killed_while_they_start_are_started_once_more(serve):
    server = serve(tensor_parallel_size=2)
    expected = asyncio.run(streams(server))

    def disturb():
        first = server.processes()["runner1"]
        os.kill(first, signal.SIGKILL)
        os.kill(next_life(server, "runner1", first), signal.SIGKILL)

    assert_it_goes_on_as_if_nothing_had_happened(server, expected, disturb)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_streams_of_a_lost_replica_go_on_at_the_other_with_the_same_tokens(serve, number):
    server = serve(
        data_parallel_size=2, load_balance_method="round_robin", watchdog_timeout_s=WATCHDOG_S
    )
    expected = asyncio.run(streams(server))
    before = server.processes()
    # The first of them has got some: on a busy machine the other replica's may be far behind.
    disturbance = Disturbance(
        lambda: os.kill(before["runner1_0"], number), after_texts=20, streams=1
    )
    assert asyncio.run(streams(server, disturbance)) == expected
    wait_until_ready(server)
    after = server.processes()
    assert {role for role in before if before[role] != after[role]} == {"runner1_0"}
    server.assert_all_is_back()
    sections = server.state()["sections"]
    lives = [sections[f"scheduler{index}"]["runners_lost_total"] for index in range(2)]
    assert lives == [0, 1]
    assert sections["router"]["handed_over_total"] >= STREAMS / 4
    server.stop()
    assert server.end()[0] == 0, server.log.read_text()


def test_a_replica_that_does_not_come_back_costs_no_request(serve):
    """Its runners are stopped while they start: everything is answered without them."""
    server = serve(data_parallel_size=2, load_balance_method="round_robin")
    expected = asyncio.run(streams(server))
    first = server.processes()["runner0_0"]

    def disturb():
        os.kill(first, signal.SIGKILL)
        wait_until(server, lambda told: "degraded" in told.json())
        os.kill(server.processes()["runner0_0"], signal.SIGSTOP)

    disturbance = Disturbance(disturb, after_texts=20, streams=1)
    assert asyncio.run(streams(server, disturbance)) == expected
    told = httpx.get(f"{server.url}/ready", timeout=TIMEOUT_S)
    assert told.status_code == 200
    assert "1 of 2 replicas" in told.json()["degraded"]
    assert httpx.get(f"{server.url}/health", timeout=TIMEOUT_S).status_code == 200
    sections = server.state()["sections"]
    assert sections["scheduler0"]["runners_ready"] == 0
    assert sections["router"]["replicas_away"] == 1
    metrics = httpx.get(f"{server.url}/metrics", timeout=TIMEOUT_S).text
    assert 'weft_scheduler_runners_ready{replica="0"} 0.0' in metrics
    assert asyncio.run(streams(server)) == expected
    server.stop()
    assert server.end()[0] == 0, server.log.read_text()
    server.assert_nothing_is_left()


def test_with_both_replicas_lost_requests_wait_and_are_answered_by_the_first_that_is_back(serve):
    server = serve(data_parallel_size=2)
    expected = asyncio.run(streams(server))
    first = server.processes()

    def disturb():
        for role in ("runner0_0", "runner1_0"):
            os.kill(first[role], signal.SIGKILL)
        wait_until(server, lambda told: told.status_code == 503)
        os.kill(server.processes()["runner0_0"], signal.SIGSTOP)
        assert httpx.get(f"{server.url}/health", timeout=TIMEOUT_S).status_code == 200

    disturbance = Disturbance(disturb, after_texts=20, streams=1)
    assert asyncio.run(streams(server, disturbance)) == expected
    assert (
        "1 of 2 replicas" in httpx.get(f"{server.url}/ready", timeout=TIMEOUT_S).json()["degraded"]
    )


@pytest.mark.slow
def test_kills_of_either_replica_under_load_lose_no_token(serve):
    """Twelve times one of two is killed or stopped while sixteen streams are answered."""
    server = serve(
        data_parallel_size=2, tensor_parallel_size=2, threads=1, watchdog_timeout_s=WATCHDOG_S
    )
    expected = asyncio.run(streams(server))
    dice = random.Random(1)
    for _ in range(12):
        role = dice.choice([r for r in server.processes() if r.startswith("runner")])
        number = dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP])
        pid = server.processes()[role]
        disturbance = Disturbance(
            lambda pid=pid, number=number: os.kill(pid, number),
            after_texts=dice.randrange(1, TOKENS - 20),
            streams=1,
        )
        assert asyncio.run(streams(server, disturbance)) == expected, (role, number)
        wait_until_ready(server)
    server.assert_all_is_back()


def next_life(server, role, first):
    """The process of a role that has taken the place of the one with this number."""
    deadline = time.monotonic() + TIMEOUT_S
    while (found := server.processes().get(role, first)) == first:
        assert time.monotonic() < deadline
    return found


def wait_until_ready(server):
    """Until all replicas are there, a lost one among them once more."""
    wait_until(server, lambda told: "degraded" not in told.json())


def wait_until(server, holds):
    """Until what ``/ready`` says is so."""
    deadline = time.monotonic() + TIMEOUT_S
    while not holds(httpx.get(f"{server.url}/ready", timeout=TIMEOUT_S)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_a_compiler_ranks_find_each_other_again(serve, monkeypatch):
    """By gloo. Torch's own operations round by what else is in a batch, so texts may differ."""
    monkeypatch.setenv("CC", "/no/compiler")
    server = serve(tensor_parallel_size=2)
    kill = Disturbance(
        lambda: os.kill(server.processes()["runner1"], signal.SIGKILL), after_texts=5
    )
    asyncio.run(streams(server, kill))
    assert lost(server) == 1
    server.assert_all_is_back()
