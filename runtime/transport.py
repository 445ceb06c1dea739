"""The mailbox over ZeroMQ: one bound ROUTER for who comes in, one DEALER for each way out."""

from __future__ import annotations

import errno
import logging
import time
from pathlib import Path

import zmq

from weft.runtime import sockets
from weft.runtime.actor import Send
from weft.runtime.codec import FRAME_BYTES_MAX
from weft.runtime.endpoint import CLIENTS_MAX, PROBE_INTERVAL_S, Endpoint, Lost, Mail
from weft.runtime.topology import Topology, address

# Frames that a socket queues for one peer each way. Credit keeps honest peers far below it (the
# widest window is 1024): it is the fuse for one that breaks the rules.
QUEUE_FRAMES_MAX = 4096

# Frames looked at for each message wanted: acknowledgements and garbage must not hold up the loop.
FRAMES_PER_MESSAGE_MAX = 4

# How long what was sent last may take to leave when a mailbox closes.
LINGER_MS = 1000

# Messages taken, and dropped, when a mailbox closes.
CLOSE_MESSAGES_MAX = 1024

# At most one line about dropped frames in this time, however many there are.
FAULT_LOG_INTERVAL_S = 5.0

_log = logging.getLogger(__name__)


class ZmqMailbox:
    """An endpoint on real sockets, in the private directory of a run."""

    def __init__(
        self, endpoint: Endpoint, topology: Topology, run_dir: Path, wakes: int | None = None
    ) -> None:
        """Bind what the role binds, connect what it connects, and say Hello.

        ``take`` also waits no longer once the file descriptor ``wakes`` is readable.
        """
        self.endpoint = endpoint
        self.room = endpoint.room
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}  # by port
        self._poll_all = zmq.Poller()
        self._poll_connected = zmq.Poller()
        if wakes is not None:
            for poller in (self._poll_all, self._poll_connected):
                poller.register(wakes, zmq.POLLIN)
        self._faults_logged = 0
        self._fault_log_at = 0.0
        self._probe_at = 0.0
        role = endpoint.role
        for edge in topology.connected_by(role):
            socket = self._socket(edge.binds, zmq.DEALER)
            socket.setsockopt_string(zmq.IDENTITY, endpoint.identity)
            socket.connect(address(run_dir, edge.binds))
            self._poll_connected.register(socket, zmq.POLLIN)
        if topology.bound_by(role):
            socket = self._socket(role, zmq.ROUTER)
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            socket.setsockopt(zmq.BACKLOG, CLIENTS_MAX)  # all of them may come at once
            socket.bind(address(run_dir, role))
        endpoint.open()
        self._transmit()

    def take(self, limit: int, wait_s: float) -> list[Mail | Lost]:
        """Return at most ``limit`` events in order, waiting at most ``wait_s`` for the first."""
        arrived = self.endpoint.arrived
        self._receive(limit)
        if not arrived and wait_s > 0:
            poller = self._poll_connected if self.endpoint.is_jammed else self._poll_all
            poller.poll(int(wait_s * 1000))
            self._receive(limit)
        self._keep_house()
        return [arrived.popleft() for _ in range(min(limit, len(arrived)))]

    def send(self, send: Send) -> None:
        """Transmit one message, or queue it until there is credit. Never blocks."""
        self.endpoint.send(*send)
        self._transmit()

    @property
    def is_open(self) -> bool:
        """Whether every process that this one needs has answered."""
        return self.endpoint.is_open

    @property
    def is_flushed(self) -> bool:
        """Whether no message waits for credit."""
        return self.endpoint.is_flushed

    def close(self) -> None:
        """Say Goodbye to everyone, let it leave, and release the sockets."""
        self._receive(CLOSE_MESSAGES_MAX)  # whoever has left already need not be waited for
        self.endpoint.close()
        self._transmit()
        for port, socket in self._sockets.items():
            socket.close(linger=LINGER_MS if self.endpoint.is_heard_on(port) else 0)
        sockets.terminate(self._context, linger_ms=LINGER_MS)

    def _socket(self, port: str, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.linger = LINGER_MS
        socket.set_hwm(QUEUE_FRAMES_MAX)
        socket.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        self._poll_all.register(socket, zmq.POLLIN)
        self._sockets[port] = socket
        return socket

    def _receive(self, limit: int) -> None:
        """Take frames from the sockets in turns, so that no peer's flood holds up another's."""
        is_jammed = self.endpoint.is_jammed
        waiting = [port for port in self._sockets if not (is_jammed and port == self.endpoint.role)]
        for _ in range(limit * FRAMES_PER_MESSAGE_MAX):
            if not waiting or len(self.endpoint.arrived) >= limit:
                break
            port = waiting.pop(0)
            try:
                parts = self._sockets[port].recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                continue
            waiting.append(port)
            # A ROUTER puts the sender's identity in front.
            identity = parts.pop(0) if port == self.endpoint.role else b""
            self.endpoint.receive(port, identity, parts)
        self._transmit()

    def _transmit(self) -> None:
        outgoing = self.endpoint.outgoing
        while outgoing:
            port, identity, frame = outgoing.popleft()
            try:
                if port == self.endpoint.role:
                    self._sockets[port].send_multipart([identity.encode(), frame], zmq.DONTWAIT)
                else:
                    self._sockets[port].send(frame, zmq.DONTWAIT)
            except zmq.Again:
                self.endpoint.undeliverable(identity, "queue")
            except zmq.ZMQError as error:
                if error.errno != errno.EHOSTUNREACH:
                    raise
                self.endpoint.undeliverable(identity, "unreachable")

    def _keep_house(self) -> None:
        now = time.monotonic()
        if now >= self._probe_at:
            self._probe_at = now + PROBE_INTERVAL_S
            self.endpoint.probe()
            self._transmit()
        faults = self.endpoint.faults.total()
        if faults > self._faults_logged and now >= self._fault_log_at:
            self._fault_log_at = now + FAULT_LOG_INTERVAL_S
            _log.warning(
                "dropped %d frames (%d in all), the last one: %s",
                faults - self._faults_logged, faults, self.endpoint.last_fault,
            )  # fmt: skip
            self._faults_logged = faults
