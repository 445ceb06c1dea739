"""One process's end of all its links: who may speak, who is spoken to. No I/O.

A role has one bound socket for the edges that others connect to it, and one connected socket for
each edge that it opens itself. What moves bytes (ZeroMQ, deques in one process, the simulator)
hands every frame that comes in to ``receive`` and takes what is to go out from ``outgoing``; the
loop takes what the actor must hear from ``arrived``.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from functools import reduce
from itertools import chain
from operator import or_
from typing import Any, NamedTuple

from weft.runtime.codec import BadFrame, BadMessage, Decoder, Envelope, encode
from weft.runtime.identity import process_identity
from weft.runtime.link import Link, LinkError
from weft.runtime.messages import Goodbye, Hello, LinkInbox, Message, Refused
from weft.runtime.topology import CLIENT, Edge, Topology

# Clients with an open link. The gateway is one, whatever the number of its HTTP connections.
CLIENTS_MAX = 1024

# Messages that may wait for a client that does not read; then it is dropped.
CLIENT_WAITING_MAX = 1024

# Messages that may wait for another process before a role hears nothing new on its bound socket,
# where its work comes from. Edges never connect in a circle, so neither does this waiting.
JAM_WAITING = 1024

# Silent clients get a frame this often, which finds out those that are gone.
PROBE_INTERVAL_S = 5.0

# ZeroMQ's own limit for an identity.
IDENTITY_BYTES_MAX = 255


class Mail(NamedTuple):
    """A message that arrived, with the role or the client's identity that it came from."""

    source: str
    message: Message


class Lost(NamedTuple):
    """Nothing more can be sent to this client: what is held for it can go."""

    client: str


class Parcel(NamedTuple):
    """A frame that is to go out.

    ``port`` is the role whose bound socket the frame passes, ``identity`` the peer on its other
    side: a parcel from the role that binds goes to ``identity``, any other comes from it.
    """

    port: str
    identity: str
    frame: bytes


class _Peer:
    """The far end of a link through the bound socket."""

    def __init__(self, name: str, identity: str, edge: Edge, link: Link) -> None:
        self.name = name  # role, or the identity of a client
        self.identity = identity  # "" until the role has said Hello
        self.edge = edge
        self.link = link
        self.was_heard = True  # since the last probe
        self.departed = False  # it said Goodbye


class Endpoint:
    """The links of one process, and the rules by which peers come and go.

    Invariants, checked by ``check``: every internal edge has exactly one peer, there are at most
    ``clients_max`` clients, and every link keeps its own.
    """

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
        self._clients_max = clients_max
        self._key = key
        self._roles = {end for edge in topology.edges for end in edge[:2]} - {CLIENT}
        self._bound = {edge.connects: edge for edge in topology.bound_by(role)}
        self._processes: dict[str, _Peer] = {}  # by role
        self._clients: dict[str, _Peer] = {}  # by identity
        self._decoders: dict[str, Decoder] = {}  # by the role of the far end
        for edge in topology.connected_by(role):
            self._decoders[edge.binds] = Decoder(_union(edge.backward))
            link = self._link(edge, connects=True)
            self._processes[edge.binds] = _Peer(edge.binds, identity, edge, link)
        for edge in self._bound.values():
            self._decoders[edge.connects] = Decoder(_union(edge.forward))
            if edge.connects != CLIENT:
                link = self._link(edge, connects=False)
                self._processes[edge.connects] = _Peer(edge.connects, "", edge, link)

    # ---- for the loop ---------------------------------------------------------------------------

    def room(self, to: str) -> int:
        """Return how many messages to ``to`` would leave at once.

        One to a client that is not there: an actor that waits for room must not wait for ever,
        and hears with its next message that the client is lost.
        """
        peer = self._peer(to)
        if peer is None:
            assert to not in self._roles, f"{self.role} has no link to {to}"
            return 1
        return peer.link.room

    def send(self, to: str, message: Message) -> None:
        """Send now or as soon as there is credit; a client that cannot be reached is lost."""
        peer = self._peer(to)
        if peer is None:
            assert to not in self._roles, f"{self.role} has no link to {to}"
            self.arrived.append(Lost(to))
        elif peer.departed:
            self._fault("departed", f"{type(message).__name__} for {to}, which has left")
        elif to in self._clients and peer.link.waiting >= CLIENT_WAITING_MAX:
            self._drop(peer, "slow", f"{to} does not read: {CLIENT_WAITING_MAX} messages wait")
        else:
            self._post(peer, peer.link.send(message))

    @property
    def is_open(self) -> bool:
        """Whether every process that this one needs has answered."""
        return all(peer.link.is_open for peer in self._processes.values())

    @property
    def is_flushed(self) -> bool:
        """Whether no message waits for credit, for whoever is still there."""
        return all(peer.link.is_flushed or peer.departed for peer in self._everyone())

    @property
    def is_jammed(self) -> bool:
        """Whether so much waits for another process that no new work should be heard."""
        return any(
            peer.link.waiting >= JAM_WAITING and peer.edge.connects == self.role
            for peer in self._processes.values()
        )

    # ---- for what moves the bytes ---------------------------------------------------------------

    def open(self) -> None:
        """Say Hello on every edge that this role connects."""
        for peer in self._processes.values():
            if peer.edge.connects == self.role:
                self._post(peer, peer.link.open())

    def close(self) -> None:
        """Say Goodbye to everyone."""
        for peer in self._everyone():
            if not peer.departed:
                self._post(peer, peer.link.close())

    def is_heard_on(self, port: str) -> bool:
        """Return whether anyone takes what is sent through ``port``."""
        if port == self.role:
            return True
        return self._processes[port].link.is_open and not self._processes[port].departed

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
                self._receive(self._processes[port], *self._decoders[port](parts[0]))
        except (BadFrame, LinkError) as error:
            self._fault(error.reason, f"{identity!r} through {port}: {error}")

    def undeliverable(self, identity: str, reason: str) -> None:
        """Hear that the transport knows no peer of that identity, or that its queue is full."""
        detail = f"a frame to {identity} could not be delivered"
        if identity in self._clients:
            self._drop(self._clients[identity], reason, detail)
        else:
            self._fault(reason, detail)

    def probe(self) -> None:
        """Send a frame to every client that was silent since the last call.

        The transport reports those that are gone; call it every ``PROBE_INTERVAL_S``.
        """
        for peer in self._clients.values():
            if not peer.was_heard:
                self._post(peer, peer.link.probe())
            peer.was_heard = False

    def check(self) -> None:
        """Assert the invariants of this and of every link."""
        assert len(self._clients) <= self._clients_max
        assert not self._clients.keys() & self._processes.keys()
        for name, peer in [*self._clients.items(), *self._processes.items()]:
            assert peer.name == name
            peer.link.check()

    # ---- who is who -----------------------------------------------------------------------------

    def _introduce(self, identity: bytes) -> tuple[str, Edge]:
        """Return the name of a sender on the bound socket and the edge that it speaks on."""
        try:
            text = identity.decode()
        except UnicodeDecodeError:
            raise LinkError("identity", "not UTF-8") from None
        if not text.isprintable() or not text:
            raise LinkError("identity", "set the socket's identity to a printable name of your own")
        role = text.partition(".")[0]
        if role != CLIENT and role in self._bound:
            return role, self._bound[role]
        if CLIENT not in self._bound:
            raise LinkError("stranger", f"{self.role} has no link from {role}")
        if role in self._roles:
            raise LinkError("stranger", f"{text} is named like the process {role}")
        return text, self._bound[CLIENT]

    def _admit(self, name: str, identity: str, edge: Edge, epoch: int, window: int) -> None:
        """Make way for the Hello of a client or a role, or of its next life."""
        if window < 2:
            raise LinkError("handshake", f"a window of {window}")
        newcomer = _Peer(name, identity, edge, self._link(edge, connects=False))
        if edge.connects == CLIENT:
            if name in self._clients:
                self.arrived.append(Lost(name))  # its former life
            elif len(self._clients) >= self._clients_max:
                self._turn_away(identity, epoch)
                raise LinkError("clients", f"{self._clients_max} clients are connected already")
            self._clients[name] = newcomer
            return
        if self._key is not None and identity != process_identity(name, epoch, self._key):
            raise LinkError("stranger", f"{identity} is not a life of {name} in this run")
        peer = self._processes[name]
        if not peer.link.is_open:
            peer.identity = identity  # what waits for it waits in this link
        elif identity == peer.identity or epoch <= peer.link.peer_epoch:
            raise LinkError("fenced", f"{identity} is not newer than {peer.identity}")
        else:
            self._processes[name] = newcomer

    def _turn_away(self, identity: str, epoch: int) -> None:
        goodbye = encode(
            Goodbye(),
            source_epoch=self._epoch,
            destination_epoch=epoch,
            sequence=0,
            acknowledged=0,
        )
        self.outgoing.append(Parcel(self.role, identity, goodbye))

    def _drop(self, peer: _Peer, reason: str, detail: str) -> None:
        """Forget a client, telling it and the actor."""
        self._fault(reason, detail)
        self._post(peer, peer.link.close())
        del self._clients[peer.name]
        self.arrived.append(Lost(peer.name))

    def _peer(self, name: str) -> _Peer | None:
        return self._processes.get(name) or self._clients.get(name)

    def _everyone(self) -> Iterator[_Peer]:
        return chain(self._processes.values(), self._clients.values())

    # ---- frames ---------------------------------------------------------------------------------

    def _receive_bound(self, identity: bytes, frame: bytes) -> None:
        name, edge = self._introduce(identity)
        try:
            envelope, message = self._decoders[edge.connects](frame)
        except BadMessage as error:
            if name in self._clients:
                self._refuse(self._clients[name], error)
            raise
        if isinstance(message, Hello):
            self._admit(name, identity.decode(), edge, envelope.source_epoch, message.window)
        peer = self._peer(name)
        if peer is None or peer.identity != identity.decode():
            raise LinkError("unopened", f"{type(message).__name__} before Hello")
        self._receive(peer, envelope, message)

    def _receive(self, peer: _Peer, envelope: Envelope, message: Message) -> None:
        taken, replies = peer.link.receive(envelope, message)
        peer.was_heard = True
        self._post(peer, replies)
        if taken is not None:
            self.arrived.append(Mail(peer.name, taken))
        elif isinstance(message, Goodbye):
            if peer.name in self._clients:
                del self._clients[peer.name]
                self.arrived.append(Lost(peer.name))
            else:
                peer.departed = True

    def _refuse(self, client: _Peer, error: BadMessage) -> None:
        """Tell a client of its message that cannot be read, and hear those after it."""
        if not error.envelope.sequence:
            return  # link control, which is not answered
        _, replies = client.link.receive(error.envelope, None)
        client.was_heard = True
        self._post(client, replies)
        if error.label is not None and Refused in client.edge.backward:
            text = f"{error}; INGRESS.md lists the fields of every message"
            self.send(client.name, Refused(error.label, "invalid_value", text, error.param or None))

    def _post(self, peer: _Peer, frames: list[bytes]) -> None:
        self.outgoing.extend(Parcel(peer.edge.binds, peer.identity, frame) for frame in frames)

    def _fault(self, reason: str, detail: str) -> None:
        self.faults[reason] += 1
        self.last_fault = f"{reason}: {detail}"

    def _link(self, edge: Edge, *, connects: bool) -> Link:
        window = edge.backward_window if connects else edge.forward_window
        return Link(epoch=self._epoch, window=window, connects=connects)


def _union(messages: tuple[type[Message], ...]) -> Any:
    return reduce(or_, messages, LinkInbox)
