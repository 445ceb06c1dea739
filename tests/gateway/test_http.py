"""Heads of requests, as they come over a socket."""

import json
import socket
import threading

import pytest
import uvicorn

from weft.gateway.http import HEAD_BYTES_MAX, BoundedHeads

TIMEOUT_S = 60.0


async def tell_body_size(scope, receive, send):
    """An application that answers with the size of what it was sent."""
    size, more = 0, True
    while more:
        event = await receive()
        size += len(event.get("body", b""))
        more = event.get("more_body", False)
    body = str(size).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def address():
    listener = socket.create_server(("127.0.0.1", 0))
    settings = uvicorn.Config(
        tell_body_size, http=BoundedHeads, loop="uvloop", lifespan="off", log_config=None
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield listener.getsockname()
    server.should_exit = True
    thread.join(TIMEOUT_S)


@pytest.fixture
def connection(address):
    with socket.create_connection(address, timeout=TIMEOUT_S) as connection:
        yield connection


def post(body, *, headers=b""):
    length = str(len(body)).encode()
    return b"POST / HTTP/1.1\r\nhost: x\r\n" + headers + b"content-length: " + length + (
        b"\r\n\r\n" + body
    )  # fmt: skip


def read_all(connection):
    return b"".join(iter(lambda: connection.recv(65536), b""))


def answers(connection, count):
    """The bodies of so many answers."""
    data, found = b"", []
    while len(found) < count:
        data += connection.recv(65536)
        while b"\r\n\r\n" in data:
            head, _, rest = data.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            if len(rest) < length:
                break
            found.append(int(rest[:length]))
            data = rest[length:]
    return found


@pytest.mark.parametrize(
    "head",
    [b"GET / HTTP/1.1\r\nlong: ", b"GET /", b"GET / HTTP/1.1\r\n"],
    ids=["header", "path", "headers"],
)
def test_a_head_without_end_is_refused_and_not_kept(connection, head):
    more = b"name: value\r\n" * 1000 if head.endswith(b"\n") else b"x" * 10_000
    connection.sendall(head)
    sent = 0
    try:
        while sent < 100 * HEAD_BYTES_MAX:
            connection.sendall(more)
            sent += len(more)
    except OSError:
        pass  # it has closed the connection
    assert sent < 100 * HEAD_BYTES_MAX


def test_the_refusal_is_an_error_of_the_api(connection):
    connection.sendall(b"GET / HTTP/1.1\r\nlong: " + b"x" * (HEAD_BYTES_MAX + 1))
    head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_long_headers_and_long_bodies_are_served(connection):
    long = b"long: " + b"x" * 50_000 + b"\r\n"
    bodies = [b"", b"y" * 300_000, b"z" * 5_000_000, b"w"]
    for body in bodies:
        connection.sendall(post(body, headers=long))
        assert answers(connection, 1) == [len(body)]


def test_requests_that_follow_at_once_are_served(connection):
    bodies = [b"y" * size for size in (200_000, 3, 70_000, 0, 200_000)]
    connection.sendall(b"".join(map(post, bodies)))
    assert answers(connection, len(bodies)) == [len(body) for body in bodies]


def test_a_head_may_come_in_small_pieces(connection):
    request = post(b"abc", headers=b"long: " + b"x" * 3000 + b"\r\n")
    for start in range(0, len(request), 100):
        connection.sendall(request[start : start + 100])
    assert answers(connection, 1) == [3]
