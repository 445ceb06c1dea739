"""Clients that die, stop reading or never finish a sentence: nobody else notices."""

import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from urllib.parse import urlsplit

import pytest

from tests.system.chats import MODELS
from tests.system.runs import TIMEOUT_S
from weft.runtime.client import AsyncClient

pytestmark = pytest.mark.system

READERS = 6
RAW_REQUESTS = 200
GREEDY = {"temperature": 0, "ignore_eos": True, "max_tokens": 40}

# A client of its own process that reads several long streams at once, over all models.
READER = """
import asyncio, sys
from weft.runtime.client import AsyncClient

async def read(client, model):
    async for text in client.complete("The", model=model, ignore_eos=True, max_tokens=1500):
        print(model, flush=True)

async def main():
    async with await AsyncClient.connect(sys.argv[1]) as client:
        await asyncio.gather(*(read(client, model) for model in sys.argv[2:]))

asyncio.run(main())
"""


@pytest.fixture
def read(weft):
    """Start a reader."""
    readers = []

    def read():
        readers.append(
            subprocess.Popen(
                [sys.executable, "-c", READER, str(weft.run_dir), *MODELS], stdout=subprocess.PIPE
            )
        )
        return readers[-1]

    yield read
    for reader in readers:
        reader.kill()
        reader.communicate()


def wait_until_read(reader):
    unread = set(MODELS)
    while unread:
        line = reader.stdout.readline().decode().strip()
        assert line, "the reader has ended"
        unread.discard(line)


async def polite(weft, work):
    """Texts of the same requests: once before ``work`` begins in a thread, and until it is done."""
    async with await AsyncClient.connect(weft.run_dir) as client:

        async def one(model):
            texts = client.complete("The", model=model, **GREEDY)
            return "".join([text async for text in texts])

        rounds = [await asyncio.gather(*map(one, MODELS))]
        working = asyncio.create_task(asyncio.to_thread(work))
        rounds.append(await asyncio.gather(*map(one, MODELS)))
        while not working.done():
            rounds.append(await asyncio.gather(*map(one, MODELS)))
        await working
        return rounds


def disturb(weft, work):
    """Run ``work`` in a thread beside polite clients; they must not notice."""
    expected, *rounds = asyncio.run(polite(weft, work))
    assert all(texts == expected for texts in rounds)
    weft.assert_all_is_back()


def test_clients_that_are_killed_while_they_read_leave_nothing_behind(weft, read):
    rng = random.Random(5)

    def kill_some():
        readers = [read() for _ in range(READERS)]
        for reader in readers:
            wait_until_read(reader)
            time.sleep(rng.uniform(0.0, 0.1))
            reader.send_signal(signal.SIGKILL)

    disturb(weft, kill_some)


def test_a_client_that_stops_reading_holds_nobody_up(weft, read):
    def stop_one():
        reader = read()
        wait_until_read(reader)
        reader.send_signal(signal.SIGSTOP)
        time.sleep(1.0)
        reader.kill()

    disturb(weft, stop_one)


def connect(weft):
    place = urlsplit(weft.url)
    return closing(socket.create_connection((place.hostname, place.port), timeout=TIMEOUT_S))


def request(path, body):
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: weft\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def test_an_http_client_that_never_reads_holds_nobody_up(weft):
    body = {"prompt": "The", "n": 8, "max_tokens": 1500, "stream": True, "ignore_eos": True}

    def send_and_wait():
        with connect(weft) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(request("/v1/completions", body))
            deadline = time.monotonic() + TIMEOUT_S
            while weft.held()["scheduler's rows_running"] < 8:
                assert time.monotonic() < deadline
            time.sleep(1.0)

    disturb(weft, send_and_wait)


def test_bytes_that_are_no_http_harm_nobody(weft, http):
    """Requests cut short, damaged, or never meant to be any."""
    rng = random.Random(6)
    whole = request("/v1/chat/completions", {"messages": [], "max_tokens": 2})

    def send():
        for _ in range(RAW_REQUESTS):
            data = bytearray(whole)
            match rng.randrange(4):
                case 0:
                    data = data[: rng.randrange(len(data))]
                case 1:
                    data = bytearray(rng.randbytes(rng.randrange(1, 500)))
                case 2:
                    data = data.replace(b"Content-Length: ", rng.choice([b"X: ", b"A" * 70_000]))
                case _:
                    for _ in range(rng.randrange(1, 6)):
                        data[rng.randrange(len(data))] = rng.randrange(256)
            with connect(weft) as connection:
                connection.sendall(bytes(data))
                if rng.random() < 0.5:
                    connection.settimeout(0.05)
                    # Or it waits for the rest, or is not spoken to any more.
                    with suppress(TimeoutError, ConnectionResetError):
                        assert not connection.recv(65536).startswith(b"HTTP/1.1 5")

    disturb(weft, send)
    assert http.get("/health").status_code == 200
