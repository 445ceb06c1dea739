"""The same links without processes: frames travel through deques, actors take turns in one thread.

For offline use, for tests, and under the simulator.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable

from weft.runtime.actor import Send
from weft.runtime.endpoint import Endpoint, Lost, Mail, Parcel
from weft.runtime.topology import CLIENT, Topology


class InprocessMailbox:
    """An endpoint whose frames a ``Network`` carries. Never waits."""

    def __init__(self, endpoint: Endpoint, network: Network) -> None:
        self.endpoint = endpoint
        self.room = endpoint.room
        self._network = network
        self._bound: deque[Parcel] = deque()  # through the endpoint's own port
        self._connected: deque[Parcel] = deque()

    def deliver(self, parcel: Parcel) -> None:
        """Take in what the network brings; the endpoint sees it when the actor asks for mail."""
        queue = self._bound if parcel.port == self.endpoint.role else self._connected
        queue.append(parcel)

    @property
    def has_frames(self) -> bool:
        """Whether frames have come that the endpoint has not seen."""
        return bool(self._connected or self._bound)

    def take(self, limit: int, wait_s: float) -> list[Mail | Lost]:
        """Return at most ``limit`` events in order."""
        arrived = self.endpoint.arrived
        while len(arrived) < limit:
            if self._connected:
                port, identity, frame = self._connected.popleft()
            elif self._bound and not self.endpoint.is_jammed:
                port, identity, frame = self._bound.popleft()
            else:
                break
            self.endpoint.receive(port, identity.encode(), [frame])
        self._network.carry(self.endpoint)
        return [arrived.popleft() for _ in range(min(limit, len(arrived)))]

    def send(self, send: Send) -> None:
        """Transmit one message, or queue it until there is credit."""
        self.endpoint.send(*send)
        self._network.carry(self.endpoint)

    def probe(self) -> None:
        """Find out which silent clients are gone."""
        self.endpoint.probe()
        self._network.carry(self.endpoint)

    @property
    def is_open(self) -> bool:
        """Whether every process that this one needs has answered."""
        return self.endpoint.is_open

    @property
    def is_flushed(self) -> bool:
        """Whether no message waits for credit."""
        return self.endpoint.is_flushed

    def close(self) -> None:
        """Say Goodbye to everyone, and be gone."""
        self.endpoint.close()
        self._network.carry(self.endpoint)
        self._network.leave(self.endpoint)


class Network:
    """Which endpoint a frame goes to."""

    def __init__(
        self,
        topology: Topology,
        post: Callable[[InprocessMailbox, Parcel], None] = InprocessMailbox.deliver,
    ) -> None:
        """``post`` brings a parcel to its mailbox, at once by default."""
        self._topology = topology
        self._post = post
        self._mailboxes: dict[str, InprocessMailbox] = {}  # by identity
        self._roles: dict[str, str] = {}  # role -> identity
        self._early: defaultdict[str, list[Parcel]] = defaultdict(list)  # for roles yet to come

    def join(self, role: str, *, identity: str, epoch: int = 1) -> InprocessMailbox:
        """Return a new mailbox; its links open as frames are carried."""
        endpoint = Endpoint(role, self._topology, identity=identity, epoch=epoch)
        mailbox = InprocessMailbox(endpoint, self)
        self._mailboxes[identity] = mailbox
        if role != CLIENT:
            self._roles[role] = identity
        for parcel in self._early.pop(role, []):
            self._post(mailbox, parcel)
        endpoint.open()
        self.carry(endpoint)
        return mailbox

    def leave(self, endpoint: Endpoint) -> None:
        """Forget an endpoint: what is sent to it from now on cannot be delivered."""
        del self._mailboxes[endpoint.identity]
        if self._roles.get(endpoint.role) == endpoint.identity:
            del self._roles[endpoint.role]

    def carry(self, sender: Endpoint) -> None:
        """Post everything that the sender has to go out."""
        while sender.outgoing:
            parcel = sender.outgoing.popleft()
            is_to_role = parcel.port != sender.role
            identity = self._roles.get(parcel.port) if is_to_role else parcel.identity
            mailbox = self._mailboxes.get(identity) if identity else None
            if mailbox is not None:
                self._post(mailbox, parcel)
            elif is_to_role:
                self._early[parcel.port].append(parcel)
            else:
                sender.undeliverable(parcel.identity, "unreachable")
