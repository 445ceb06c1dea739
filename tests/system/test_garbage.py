"""Whatever arrives, nothing dies, nobody else notices, and the next request is served."""

import asyncio
import json
import random
import re
import time
from collections import Counter

import httpx
import msgspec
import pytest
import zmq

from tests.system.runs import TIMEOUT_S
from tests.system.samples import MESSAGES
from weft.runtime import messages
from weft.runtime.client import AsyncClient, Finished, Refused
from weft.runtime.codec import encode
from weft.runtime.messages import Hello, Sampling
from weft.runtime.topology import TOPOLOGY, address

pytestmark = pytest.mark.system

FRAMES = 12_000
FRAMES_PER_SOCKET = 30
BODIES = 600
REQUESTS = 600

BOUND = sorted({edge.binds for edge in TOPOLOGY.edges})


def test_there_is_a_sample_of_every_message():
    kinds = {
        kind
        for kind in vars(messages).values()
        if isinstance(kind, type) and issubclass(kind, messages.Message)
    } - {messages.Message}
    assert {type(sample) for sample in MESSAGES} == kinds


def test_no_frame_harms_a_run(weft):
    """Clients stream all the while, and get every token."""
    processes = weft.processes()

    async def work():
        async with await AsyncClient.connect(weft.run_dir) as client:

            async def stream():
                texts, is_over = [], False
                while not is_over:
                    is_over = sending.done()
                    chat = client.complete("The", temperature=0, max_tokens=50, ignore_eos=True)
                    texts.append("".join([text async for text in chat]))
                return texts

            sending = asyncio.create_task(asyncio.to_thread(_send_garbage, weft, seed=1))
            return (await asyncio.gather(stream(), stream(), sending))[:2]

    texts = [text for stream in asyncio.run(work()) for text in stream]
    assert len(texts) > 2
    assert len(set(texts)) == 1
    assert weft.processes() == processes
    weft.assert_all_is_back()
    # They did arrive: what was dropped is in the log, a line every few seconds.
    deadline = time.monotonic() + TIMEOUT_S
    while _dropped(weft) < FRAMES // 2:
        assert time.monotonic() < deadline, _dropped(weft)
        time.sleep(0.1)


def _dropped(weft):
    """Frames that all processes together say they have dropped."""
    found = re.findall(r" (\w+) warning dropped \d+ frames \((\d+) in all\)", weft.log.read_text())
    return sum({role: int(count) for role, count in found}.values())


def _send_garbage(weft, seed):
    rng = random.Random(seed)
    context = zmq.Context()
    for number in range(FRAMES // FRAMES_PER_SOCKET):
        port = BOUND[number % len(BOUND)]
        socket = context.socket(zmq.DEALER)
        socket.identity = _identity(rng, number)
        socket.connect(address(weft.run_dir, port))
        if rng.random() < 0.7:
            epoch = rng.choice([1, 1, 1, 2, 7])
            socket.send(_frame(Hello(64), 0, source_epoch=epoch, destination_epoch=0))
        sequence = 1
        for _ in range(FRAMES_PER_SOCKET):
            parts = _mutate(rng, bytearray(_frame(rng.choice(MESSAGES), sequence)))
            socket.send_multipart(parts)
            # Most of what has an envelope has taken a number, so that what follows is looked at.
            sequence += parts[0][:5] == bytes([0x96, 1, 1, 1, sequence])
        time.sleep(0.005)
        socket.close(linger=1000)
    context.term()


def _identity(rng, number):
    """A client's name, a role's, or one that nobody should have."""
    match rng.randrange(4):
        case 0:
            role = rng.choice([process.role for process in TOPOLOGY.processes])
            return f"{role}.{rng.randrange(4)}.{number:x}".encode()
        case 1:
            return rng.choice([b"\xff\xfe", b"\n", b"x" * 240, b".", b" "]) + b"%d" % number
        case _:
            return f"garbage.{number:x}".encode()


def _frame(message, sequence, *, source_epoch=1, destination_epoch=1):
    if isinstance(message, messages.LinkInbox):
        sequence = 0
    return encode(
        message,
        source_epoch=source_epoch,
        destination_epoch=destination_epoch,
        sequence=sequence,
        acknowledged=0,
    )


def _mutate(rng, data):
    """Return the parts to send: mostly one, mostly damaged."""
    match rng.randrange(10):
        case 0:
            data = data[: rng.randrange(len(data))]
        case 1:
            data += rng.randbytes(rng.randrange(1, 64))
        case 2:
            return [bytes(data), rng.randbytes(4)]
        case 3:  # the version, an epoch, the sequence or the acknowledgement
            data[rng.randrange(1, 6)] = rng.randrange(128)
        case 4:
            data = bytearray(rng.randbytes(rng.randrange(200)))
        case 5:  # as large as a length can say it is
            at = rng.randrange(len(data))
            data[at:at] = rng.choice(
                [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\x7f"]
            )
        case 6:  # nested deeper than any decoder should follow
            data = data[:6] + b"\x91" * rng.randrange(10, 100_000)
        case 7:
            pass  # as it was: out of place, or well-formed nonsense
        case 8:  # in the message alone
            data[rng.randrange(6, len(data))] = rng.randrange(256)
        case _:
            for _ in range(rng.randrange(1, 8)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return [bytes(data)]


def test_a_frame_beyond_the_limit_is_not_even_read(weft):
    context = zmq.Context()
    for port in BOUND:
        socket = context.socket(zmq.DEALER)
        socket.identity = b"large"
        socket.connect(address(weft.run_dir, port))
        socket.send(bytes(33 * 1024 * 1024))
        socket.close(linger=1000)
    context.term()
    assert _ask(weft).reason == "length"


def _ask(weft):
    async def work():
        async with await AsyncClient.connect(weft.run_dir) as client:
            events = [event async for event in client.generate(prompt="The", max_tokens=1)]
            return events[-1]

    last = asyncio.run(work())
    assert isinstance(last, Finished)
    return last


VALUES = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**40, -(10**40), 0.5, -0.0, 1e308, 1e-308, "", "x",
    "\ud800", "\x00", "x" * 10_000, [], [[]], [None], ["a", 1], {}, {"a": {}}, {"type": "text"},
    float("nan"), float("inf"), [1.5], [-1], [10**30], [True], {"1": "x"}, {"9" * 30: 1}, {"-1": 1},
]  # fmt: skip

FIELDS = [
    "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "n", "seed", "stop", "stream", "stream_options", "presence_penalty", "frequency_penalty",
    "logit_bias", "user", "top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids",
    "ignore_eos", "skip_special_tokens", "include_stop_str_in_output", "logprobs", "top_logprobs",
    "tools", "response_format", "echo", "best_of", "suffix", "metadata", "store", "nonsense", "",
]  # fmt: skip


def test_whatever_a_client_asks_for_is_answered(weft):
    """Over ZeroMQ: a client may send any value in any field; each request has one end."""
    rng = random.Random(4)
    ends = asyncio.run(_ask_for_nonsense(weft, [_nonsense(rng) for _ in range(REQUESTS)]))
    assert set(ends) <= {
        "stop", "length", "invalid_value", "context_length_exceeded", "model_not_found",
        "unpackable",
    }, ends  # fmt: skip
    assert ends["length"] + ends["stop"] > 20
    assert ends["invalid_value"] > 100
    weft.assert_all_is_back()


def _nonsense(rng):
    asked = {"prompt": "Hi", "max_tokens": 2}
    if rng.random() < 0.3:
        turn = {"role": "user", "content": "Hi"}
        turn |= {rng.choice(["role", "content", "name", "x"]): rng.choice(VALUES)}
        asked = {"messages": [turn, turn][: rng.randrange(3)], "max_tokens": 2}
    names = [*Sampling.__struct_fields__, "model", "user", "prompt", "nonsense"]
    return asked | {rng.choice(names): rng.choice(VALUES) for _ in range(rng.randrange(3))}


async def _ask_for_nonsense(weft, requests):
    """How the requests ended: a code or a reason each, counted."""
    async with await AsyncClient.connect(weft.run_dir) as client:

        async def one(asked):
            try:
                stream = client.generate(**asked)
                return {event.reason async for event in stream if isinstance(event, Finished)}
            except Refused as refused:
                return {refused.code if refused.message else "says nothing"}
            except (OverflowError, TypeError, ValueError):
                return {"unpackable"}  # MessagePack itself cannot say it

        async with asyncio.timeout(TIMEOUT_S):
            ends = await asyncio.gather(*map(one, requests))
        return Counter(reason for reasons in ends for reason in reasons)


def test_no_body_harms_the_gateway(weft):
    """Every answer is a success or says what is wrong; none is the server's mistake."""
    rng = random.Random(2)
    with httpx.Client(base_url=weft.url, timeout=TIMEOUT_S) as client:
        for number in range(BODIES):
            path, content = _body(rng, number)
            headers = {"content-type": "application/json"}
            response = client.post(path, content=content, headers=headers)
            assert response.status_code in (200, 400, 404, 413), (path, content[:300])
            if response.status_code != 200:
                assert response.json()["error"]["message"], content[:300]
    weft.assert_all_is_back()


def _body(rng, number):
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    completion = {"prompt": "Hi", "max_tokens": 2}
    path, body = rng.choice([("/v1/chat/completions", chat), ("/v1/completions", completion)])
    if number % 3 == 0:
        body = body | {FIELDS[number // 3 % len(FIELDS)]: rng.choice(VALUES)}
    elif number % 3 == 1:
        for _ in range(rng.randrange(1, 5)):
            body = body | {rng.choice(FIELDS): rng.choice(VALUES)}
        part = {rng.choice(["role", "content", "name", "x"]): rng.choice(VALUES)}
        body = body | {"messages": [{"role": "user", "content": "Hi"} | part]}
    content = bytearray(json.dumps(body).encode())
    if number % 3 == 2:
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    if number % 50 == 49:
        content = bytearray(b"[" * 100_000)
    return path, bytes(content)


def test_a_body_may_not_nest_without_end(http):
    deep = msgspec.json.encode({"messages": []})[:-2] + b'[{"a":' * 5000
    response = http.post(
        "/v1/chat/completions", content=deep, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
