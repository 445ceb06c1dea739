"""A session's two sockets: frames moved without blocking, and the end of weft noticed."""

from __future__ import annotations

import secrets
from pathlib import Path

import zmq
from zmq.utils.monitor import parse_monitor_message

from weft.runtime import runs, sockets
from weft.runtime.client.events import Disconnected
from weft.runtime.client.session import Session
from weft.runtime.client.wire import FRAME_BYTES_MAX, Link

# How long what was sent last may take to leave.
_LINGER_MS = 500

# What whoever still waits hears of a client that leaves.
CLOSED = "this client was closed"

# How soon to try again to connect.
_RETRY_MS = 20

# Frames that a socket queues. Credit keeps both sides below it.
_QUEUE_FRAMES_MAX = 4096


class Connection:
    """Two DEALER sockets of one identity, with the session whose frames they carry."""

    def __init__(self, run_dir: Path | str | None, name: str) -> None:
        """``run_dir`` is what `weft serve` prints after "ZeroMQ"; None: the newest run.

        ``name`` begins the identity under which weft's logs show this client. Raises ``NoRun``.
        """
        place = Path(run_dir) if run_dir is not None else runs.newest()
        if not (place / "tokenizer.sock").exists():
            raise runs.NoRun(f"{place} is not the directory of a running weft")
        self.session = Session()
        self._identity = f"{name}.{secrets.token_hex(6)}".encode()
        self._context = zmq.Context()
        self._links: list[tuple[zmq.Socket[bytes], Link]] = []
        self._monitors: list[zmq.Socket[bytes]] = []
        for link in (self.session.tokenizer, self.session.detokenizer):
            self._connect(link, f"ipc://{place / link.peer}.sock")
        self.pump()

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """What to wait on: when one of them is readable, ``pump``."""
        return [*(socket for socket, _ in self._links), *self._monitors]

    def pump(self) -> bool:
        """Move every frame that can be moved now; return whether any was."""
        was_moved = False
        for socket, link in self._links:
            while (frame := _receive(socket)) is not None:
                was_moved = True
                self.session.receive(link, frame)
        # Looked at last: what weft said before it ended was heard by then.
        for monitor, (socket, link) in zip(self._monitors, self._links, strict=True):
            while (event := _receive_parts(monitor)) is not None:
                if parse_monitor_message(event)["event"] == zmq.EVENT_DISCONNECTED:
                    # A new life of weft is another run: there is nothing to come back to, and
                    # nobody who would take what has not left yet.
                    socket.linger = 0
                    socket.disconnect(socket.getsockopt_string(zmq.LAST_ENDPOINT))
                    self.session.lose(link, Disconnected("weft has ended"))
        for socket, link in self._links:
            while link.outgoing:
                was_moved = True
                try:
                    socket.send(link.outgoing.popleft(), zmq.DONTWAIT)
                except zmq.Again:
                    self._lose_all("weft does not take any more frames")
                    return was_moved
        return was_moved

    def close(self, why: str = CLOSED) -> None:
        """Tell weft goodbye, which frees all that this client held there.

        Whoever still waits hears ``why``.
        """
        self.session.tokenizer.close()
        self.session.detokenizer.close()
        self.pump()
        self._lose_all(why)
        for (socket, _), monitor in zip(self._links, self._monitors, strict=True):
            socket.disable_monitor()
            monitor.close(linger=0)
            socket.close()
        sockets.terminate(self._context, linger_ms=_LINGER_MS)

    def _connect(self, link: Link, address: str) -> None:
        socket = self._context.socket(zmq.DEALER)
        socket.identity = self._identity
        socket.set_hwm(_QUEUE_FRAMES_MAX)
        socket.linger = _LINGER_MS
        socket.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        # For the first connection, which fails if too many others come at the same moment.
        socket.setsockopt(zmq.RECONNECT_IVL, _RETRY_MS)
        self._monitors.append(socket.get_monitor_socket(zmq.EVENT_DISCONNECTED))
        socket.connect(address)
        self._links.append((socket, link))

    def _lose_all(self, why: str) -> None:
        for _, link in self._links:
            self.session.lose(link, Disconnected(why))


def _receive(socket: zmq.Socket[bytes]) -> bytes | None:
    try:
        return socket.recv(zmq.DONTWAIT)
    except zmq.Again:
        return None


def _receive_parts(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    try:
        return socket.recv_multipart(zmq.DONTWAIT)
    except zmq.Again:
        return None
