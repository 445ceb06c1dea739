"""Runners that are killed or stopped in the middle of many answers: nobody loses a token."""

import asyncio
import os
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
    """Something that happens once every stream has got so many texts."""

    def __init__(self, do, *, after_texts):
        self._do = do
        self._waiting = STREAMS
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
        deadline = time.monotonic() + TIMEOUT_S
        while server.processes().get("runner1", first) == first:
            assert time.monotonic() < deadline
        os.kill(server.processes()["runner1"], signal.SIGKILL)

    assert_it_goes_on_as_if_nothing_had_happened(server, expected, disturb)


def test_one_replica_goes_on_while_the_other_loses_its_runners(serve):
    server = serve(data_parallel_size=2, load_balance_method="round_robin")
    expected = asyncio.run(streams(server))
    before = server.processes()
    kill = Disturbance(lambda: os.kill(before["runner1_0"], signal.SIGKILL), after_texts=20)
    assert asyncio.run(streams(server, kill)) == expected
    after = server.processes()
    assert {role for role in before if before[role] != after[role]} == {"runner1_0"}
    server.assert_all_is_back()
    sections = server.state()["sections"]
    lives = [sections[f"scheduler{index}"]["runners_lost_total"] for index in range(2)]
    assert lives == [0, 1]


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
