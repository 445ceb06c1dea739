"""One process's end of all its links: frames to messages for its actor, and back. No I/O.

A role has one bound socket for the edges that others connect to it, and one connected socket for
each edge that it opens itself. What moves bytes (ZeroMQ, deques in one process, the simulator)
hands every frame that comes in to ``receive`` and takes what is to go out from ``outgoing``; the
loop takes what the actor must hear from ``arrived``.
"""

from __future__ import annotations

from collections import Counter, deque
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

from weft.runtime.codec import BadFrame, BadMessage, Decoder, Envelope, encode
from weft.runtime.link import LinkError
from weft.runtime.messages import Goodbye, Hello, LinkInbox, Message, Refused
from weft.runtime.peers import Peer, Peers, TooManyClients
from weft.runtime.topology import Edge, Topology

# Clients with an open link. The gateway is one, whatever the number of its HTTP connections.
CLIENTS_MAX = 1024

# Messages that may wait for a client that does not read; then it is dropped.
CLIENT_WAITING_MAX = 1024

# Messages that may wait for another process before a role hears nothing new on its bound socket,
# where its work comes from. Edges never connect in a circle, so neither does this waiting.
JAM_WAITING = 1024

# Silent clients get a frame this often, which finds out those that are gone.
PROBE_INTERVAL_S = 5.0


class Mail(NamedTuple):
    """A message that arrived, with the role or the client's identity that it came from."""

    source: str
    message: Message


class Lost(NamedTuple):
    """A client's link is gone, or a role's former life: what is held for it can go."""

    peer: str


class Parcel(NamedTuple):
    """A frame that is to go out.

    ``port`` is the role whose bound socket the frame passes, ``identity`` the peer on its other
    side: a parcel from the role that binds goes to ``identity``, any other comes from it.
    """

    port: str
    identity: str
    frame: bytes


class Endpoint:
    """The links of one process: what goes out, what has come in, and who is given up."""

    def __init__(
        self,
        role: str,
        topology: Topology,
        *,
        identity: str,
        epoch: int = 1,
        clients_max: int = CLIENTS_MAX,
        key: bytes | None = None,
    ) -> None:
        """``role`` is "client" for a process outside the table; ``identity`` must be fresh.

        With the run's ``key``, roles must prove that they know it: needed where strangers can come.
        """
        self.role = role
        self.identity = identity
        self.outgoing: deque[Parcel] = deque()
        self.arrived: deque[Mail | Lost] = deque()  # in the order in which it happened
        self.faults: Counter[str] = Counter()  # frames dropped, by reason
        self.last_fault = ""
        self._epoch = epoch
        self._peers = Peers(
            role, topology, identity=identity, epoch=epoch, clients_max=clients_max, key=key
        )
        self._decoders: dict[str, Decoder] = {}  # by the role of the far end
        for edge in topology.connected_by(role):
            self._decoders[edge.binds] = Decoder(_union(edge.backward))
        for edge in topology.bound_by(role):
            self._decoders[edge.connects] = Decoder(_union(edge.forward))

    # ---- for the loop ---------------------------------------------------------------------------

    def room(self, to: str) -> int:
        """Return how many messages to ``to`` would leave at once.

        One to a client that is not there: an actor that waits for room must not wait for ever,
        and hears with its next message that the client is lost.
        """
        peer = self._peers.find(to)
        return 1 if peer is None else peer.link.room

    def send(self, to: str, message: Message) -> None:
        """Send now or as soon as there is credit; a client that cannot be reached is lost."""
        peer = self._peers.find(to)
        if peer is None:
            self.arrived.append(Lost(to))
        elif peer.departed:
            self._fault("departed", f"{type(message).__name__} for {to}, which has left")
        elif to in self._peers.clients and peer.link.waiting >= CLIENT_WAITING_MAX:
            self._drop(peer, "slow", f"{to} does not read: {CLIENT_WAITING_MAX} messages wait")
        else:
            self._post(peer, peer.link.send(message))

    @property
    def is_open(self) -> bool:
        """Whether every process that this one needs has answered."""
        return all(peer.link.is_open for peer in self._peers.processes.values())

    @property
    def is_flushed(self) -> bool:
        """Whether no message waits for credit, for whoever is still there."""
        return all(peer.link.is_flushed or peer.departed for peer in self._peers)

    @property
    def is_jammed(self) -> bool:
        """Whether so much waits for another process that no new work should be heard."""
        return any(
            peer.link.waiting >= JAM_WAITING and peer.edge.connects == self.role
            for peer in self._peers.processes.values()
        )

    # ---- for what moves the bytes ---------------------------------------------------------------

    def open(self) -> None:
        """Say Hello on every edge that this role connects."""
        for peer in self._peers.processes.values():
            if peer.edge.connects == self.role:
                self._post(peer, peer.link.open())

    def close(self) -> None:
        """Say Goodbye to everyone."""
        for peer in self._peers:
            if not peer.departed:
                self._post(peer, peer.link.close())

    def is_heard_on(self, port: str) -> bool:
        """Return whether anyone takes what is sent through ``port``."""
        if port == self.role:
            return True
        peer = self._peers.processes[port]
        return peer.link.is_open and not peer.departed

    def receive(self, port: str, identity: bytes, parts: list[bytes]) -> None:
        """Take in what came through ``port``; what the actor must hear has arrived then.

        On the own port, ``identity`` is the sender's; on another's it means nothing. Anything
        but one frame that keeps the rules is counted in ``faults`` and dropped.
        """
        try:
            if len(parts) != 1:
                raise BadFrame("parts", f"{len(parts)} parts, one is expected")
            if port == self.role:
                self._receive_bound(identity, parts[0])
            else:
                self._receive(self._peers.processes[port], *self._decoders[port](parts[0]))
        except (BadFrame, LinkError) as error:
            self._fault(error.reason, f"{identity!r} through {port}: {error}")

    def undeliverable(self, identity: str, reason: str) -> None:
        """Hear that the transport knows no peer of that identity, or that its queue is full."""
        detail = f"a frame to {identity} could not be delivered"
        client = self._peers.clients.get(identity)
        if client is not None:
            self._drop(client, reason, detail)
        else:
            self._fault(reason, detail)

    def probe(self) -> None:
        """Send a frame to every client that was silent since the last call.

        The transport reports those that are gone; call it every ``PROBE_INTERVAL_S``.
        """
        for peer in self._peers.clients.values():
            if not peer.was_heard:
                self._post(peer, peer.link.probe())
            peer.was_heard = False

    def check(self) -> None:
        """Assert the invariants of the peers and of every link."""
        self._peers.check()

    # ---- frames ---------------------------------------------------------------------------------

    def _receive_bound(self, identity: bytes, frame: bytes) -> None:
        name, edge = self._peers.introduce(identity)
        try:
            envelope, message = self._decoders[edge.connects](frame)
        except BadMessage as error:
            if name in self._peers.clients:
                self._refuse(self._peers.clients[name], error)
            raise
        if isinstance(message, Hello):
            self._admit(name, identity.decode(), edge, envelope.source_epoch, message.window)
        peer = self._peers.find(name)
        if peer is None or peer.identity != identity.decode():
            raise LinkError("unopened", f"{type(message).__name__} before Hello")
        self._receive(peer, envelope, message)

    def _admit(self, name: str, identity: str, edge: Edge, epoch: int, window: int) -> None:
        """Let a sender come that has said Hello."""
        try:
            if self._peers.admit(name, identity, edge, epoch=epoch, window=window):
                self.arrived.append(Lost(name))  # its former life
        except TooManyClients:
            goodbye = encode(
                Goodbye(),
                source_epoch=self._epoch,
                destination_epoch=epoch,
                sequence=0,
                acknowledged=0,
            )
            self.outgoing.append(Parcel(self.role, identity, goodbye))
            raise

    def _receive(self, peer: Peer, envelope: Envelope, message: Message) -> None:
        taken, replies = peer.link.receive(envelope, message)
        peer.was_heard = True
        self._post(peer, replies)
        if taken is not None:
            self.arrived.append(Mail(peer.name, taken))
        elif isinstance(message, Goodbye):
            if peer.name in self._peers.clients:
                del self._peers.clients[peer.name]
                self.arrived.append(Lost(peer.name))
            else:
                peer.departed = True

    def _refuse(self, client: Peer, error: BadMessage) -> None:
        """Tell a client of its message that cannot be read, and hear those after it."""
        if not error.envelope.sequence:
            return  # link control, which is not answered
        _, replies = client.link.receive(error.envelope, None)
        client.was_heard = True
        self._post(client, replies)
        if error.label is not None and Refused in client.edge.backward:
            text = f"{error}; INGRESS.md lists the fields of every message"
            self.send(client.name, Refused(error.label, "invalid_value", text, error.param or None))

    def _drop(self, peer: Peer, reason: str, detail: str) -> None:
        """Forget a client, telling it and the actor."""
        self._fault(reason, detail)
        self._post(peer, peer.link.close())
        del self._peers.clients[peer.name]
        self.arrived.append(Lost(peer.name))

    def _post(self, peer: Peer, frames: list[bytes]) -> None:
        self.outgoing.extend(Parcel(peer.edge.binds, peer.identity, frame) for frame in frames)

    def _fault(self, reason: str, detail: str) -> None:
        self.faults[reason] += 1
        self.last_fault = f"{reason}: {detail}"


def _union(messages: tuple[type[Message], ...]) -> Any:
    return reduce(or_, messages, LinkInbox)
