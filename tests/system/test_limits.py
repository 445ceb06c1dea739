"""Overload, and ends of all kinds: nothing that was accepted is lost, and nothing is left."""

import asyncio
import os
import resource
import socket
import threading
import time
from contextlib import ExitStack, closing
from signal import SIGKILL, SIGSTOP
from urllib.parse import urlsplit

import httpx
import openai
import pytest
import zmq

from tests.system.chats import begun, kill_while_answering
from tests.system.runs import TIMEOUT_S
from weft.runtime.client import AsyncClient, Disconnected, Finished, Refused
from weft.runtime.topology import address

pytestmark = pytest.mark.system

IDLE_CONNECTIONS = 300


def ask_many(server, count, **sampling):
    """Send many at once; return the ends and the refusals."""

    async def work():
        async with await AsyncClient.connect(server.run_dir) as client:

            async def one():
                last = None
                async for event in client.generate(prompt="The", ignore_eos=True, **sampling):
                    last = event
                return last

            return await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)

    answers = asyncio.run(work())
    ends = [answer for answer in answers if isinstance(answer, Finished)]
    refusals = [answer for answer in answers if isinstance(answer, Refused)]
    assert len(ends) + len(refusals) == count, answers
    return ends, refusals


def test_a_full_queue_says_when_to_come_back_and_loses_nothing(serve):
    server = serve(max_num_seqs=2, max_queued_requests=3, max_num_batched_tokens=64)
    ends, refusals = ask_many(server, 40, max_tokens=50)
    assert refusals
    assert {end.output_tokens for end in ends} == {50}
    assert {(refused.code, refused.retry_after_s > 0) for refused in refusals} == {
        ("queue_full", True)
    }
    server.assert_all_is_back()
    answers = asyncio.run(ask_over_http(server, 30, max_retries=0))
    refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
    assert refused
    assert len(refused) + len([answer for answer in answers if answer == 50]) == 30
    assert refused[0].code == "rate_limit_exceeded"
    assert int(refused[0].response.headers["retry-after"]) >= 1
    # An unchanged client comes back by itself.
    assert asyncio.run(ask_over_http(server, 10, max_retries=300)) == [50] * 10
    server.assert_all_is_back()


async def ask_over_http(server, count, *, max_retries):
    """Send many at once; return their numbers of tokens, or what they raised."""
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=max_retries
    ) as client:

        async def one():
            response = await client.completions.create(
                model="weft-demo", prompt="The", max_tokens=50, extra_body={"ignore_eos": True}
            )
            return response.usage.completion_tokens

        return await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)


def test_pages_for_one_long_answer_serve_many_by_preemption(serve):
    server = serve(kv_cache_memory_mib=2, max_num_seqs=16, max_num_batched_tokens=64)
    alone, _ = ask_many(server, 1, max_tokens=300)
    ends, refusals = ask_many(server, 12, max_tokens=300)
    assert {end.output_tokens for end in [*alone, *ends]} == {300}
    assert not refusals
    assert server.state()["sections"]["scheduler"]["preemptions_total"] > 0
    server.assert_all_is_back()


def test_more_connections_than_a_shell_allows_files_end_nothing(serve):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        server = serve()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    place = urlsplit(server.url)
    context = zmq.Context()
    with ExitStack() as connections:
        connections.callback(context.term)
        for number in range(IDLE_CONNECTIONS):
            connection = socket.create_connection((place.hostname, place.port))
            connections.enter_context(closing(connection))
            idle = context.socket(zmq.DEALER)
            connections.callback(idle.close, linger=0)
            idle.identity = b"idle.%d" % number
            idle.connect(address(server.run_dir, "tokenizer"))
        ends, refusals = ask_many(server, 2, max_tokens=5)
        assert (len(ends), len(refusals)) == (2, 0)
        assert asyncio.run(ask_over_http(server, 2, max_retries=0)) == [50, 50]


def test_a_drain_finishes_streams_and_takes_nothing_new(serve):
    server = serve()
    lines = []

    def read():
        body = {"prompt": "The", "ignore_eos": True, "max_tokens": 600, "stream": True}
        url = f"{server.url}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=TIMEOUT_S) as answer:
            lines.extend(line for line in answer.iter_lines() if line)

    reader = threading.Thread(target=read)
    reader.start()
    while len(lines) < 3:
        time.sleep(0.01)
    server.stop()
    code, _ = server.end()
    reader.join()
    assert code == 0, server.log.read_text()
    assert lines[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in lines[-2]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health", timeout=TIMEOUT_S)
    server.assert_nothing_is_left()


def test_what_a_drain_has_no_time_for_ends_with_an_error(serve):
    server = serve(max_num_seqs=4, max_num_batched_tokens=64, drain_timeout_s=1)
    assert_each_ends_with_an_error(
        asyncio.run(disturbed(server, server.stop)), "drain_timeout_s is over"
    )
    server.end()
    assert "gateway warning drain_timeout_s is over" in server.log.read_text()
    server.assert_nothing_is_left()


def test_half_a_request_does_not_keep_a_drain_from_ending_well(serve):
    server = serve(drain_timeout_s=1)
    place = urlsplit(server.url)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: weft\r\nContent-Length: 100\r\n\r\n{"
    with socket.create_connection((place.hostname, place.port)) as connection:
        connection.sendall(head)
        time.sleep(0.2)  # until it is read
        server.stop()
        assert server.end()[0] == 0, server.log.read_text()
    assert "launcher info drained" in server.log.read_text()
    server.assert_nothing_is_left()


def test_requests_over_zeromq_are_refused_while_draining_and_finished_if_accepted(serve):
    server = serve()

    async def work():
        async with await AsyncClient.connect(server.run_dir) as client:
            events = await begun(client, max_tokens=600)
            server.stop()
            refused = None
            while refused is None:
                try:
                    async for _ in client.generate(prompt="The", max_tokens=1):
                        pass
                except Refused as error:
                    refused = error
                except Disconnected:
                    break
            return refused, [event async for event in events][-1]

    refused, last = asyncio.run(work())
    assert last.reason == "length"
    assert refused is None or refused.code == "draining"
    assert server.end()[0] == 0
    server.assert_nothing_is_left()


@pytest.mark.parametrize("role", ["tokenizer", "scheduler", "detokenizer", "adapters"])
def test_when_a_process_dies_every_answer_over_http_ends_with_an_error(serve, role):
    server = serve(max_num_seqs=4, max_num_batched_tokens=64)
    answers = asyncio.run(disturbed(server, lambda: os.kill(server.processes()[role], SIGKILL)))
    assert server.end()[0] == 1
    assert f"weft: error: the process {role} was killed by SIGKILL" in server.log.read_text()
    assert_each_ends_with_an_error(answers, "weft has ended")
    server.assert_nothing_is_left()


async def disturbed(server, disturb):
    """What streams and others that wait get, status and lines each, when something happens."""
    begun = [asyncio.Event() for _ in range(4)]

    async with httpx.AsyncClient(base_url=f"{server.url}/v1", timeout=60) as client:

        async def one(number, *, stream):
            body = {"prompt": "The", "ignore_eos": True, "max_tokens": 1500, "stream": stream}
            async with client.stream("POST", "completions", json=body) as answer:
                lines = []
                async for line in answer.aiter_lines():
                    lines += [line] if line else []
                    if len(lines) == 3:
                        begun[number].set()
                return answer.status_code, lines

        streams = [asyncio.create_task(one(number, stream=True)) for number in range(4)]
        for each in begun:
            await each.wait()
        os.kill(server.processes()["runner0"], SIGSTOP)  # lest one of them is answered
        # Others wait for a row, or for the whole of their answer.
        others = [asyncio.create_task(one(0, stream=number % 2 == 0)) for number in range(6)]
        await asyncio.sleep(0.2)
        disturb()
        return await asyncio.gather(*streams), await asyncio.gather(*others)


def assert_each_ends_with_an_error(answers, says):
    streams, others = answers
    for status, lines in streams:
        assert status == 200
        assert says in lines[-2]
        assert "service_unavailable" in lines[-2]
        assert lines[-1] == "data: [DONE]"
    for status, [line] in others:
        assert status == 503
        assert says in line


@pytest.mark.parametrize("role", ["launcher", "scheduler", "gateway"])
def test_after_a_kill_nothing_is_left_and_clients_hear_of_it(serve, role):
    server = serve()
    kill_while_answering(server, role)
    server.end()
    assert server.popen.returncode != 0
    server.assert_nothing_is_left()
