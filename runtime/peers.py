"""Who is at the far ends of one process's links: roles of the topology, and clients. No I/O.

A role's peers are there from the start, whether or not their processes are: what is said to one
waits in its link. A client's peer lasts from its Hello until it leaves or is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from weft.runtime.identity import process_identity
from weft.runtime.link import Link, LinkError
from weft.runtime.topology import CLIENT, Edge, Topology


class Peer:
    """The far end of a link."""

    def __init__(self, name: str, identity: str, edge: Edge, link: Link) -> None:
        self.name = name  # role, or the identity of a client
        self.identity = identity  # "" until the role has said Hello
        self.edge = edge
        self.link = link
        self.was_heard = True  # since the last probe
        self.departed = False  # it said Goodbye


class TooManyClients(LinkError):
    """There is no place for one more client."""


class Peers:
    """Everyone to whom a process has a link, and the rules by which they come.

    Invariants, checked by ``check``: every internal edge has exactly one peer, there are at most
    ``clients_max`` clients, and every link keeps its own.
    """

    def __init__(
        self,
        role: str,
        topology: Topology,
        *,
        identity: str,
        epoch: int,
        clients_max: int,
        key: bytes | None,
    ) -> None:
        """``role``, ``identity``, ``epoch`` and ``key`` are the process's own."""
        self.processes: dict[str, Peer] = {}  # by role
        self.clients: dict[str, Peer] = {}  # by identity
        self._role = role
        self._epoch = epoch
        self._clients_max = clients_max
        self._key = key
        self._roles = {end for edge in topology.edges for end in edge[:2]} - {CLIENT}
        self._bound = {edge.connects: edge for edge in topology.bound_by(role)}
        for edge in topology.connected_by(role):
            link = self._link(edge, connects=True)
            self.processes[edge.binds] = Peer(edge.binds, identity, edge, link)
        for edge in self._bound.values():
            if edge.connects != CLIENT:
                link = self._link(edge, connects=False)
                self.processes[edge.connects] = Peer(edge.connects, "", edge, link)

    def __iter__(self) -> Iterator[Peer]:
        return chain(self.processes.values(), self.clients.values())

    def find(self, name: str) -> Peer | None:
        """Return the peer of a role or a client; None: a client that is not there."""
        peer = self.processes.get(name) or self.clients.get(name)
        assert peer or name not in self._roles, f"{self._role} has no link to {name}"
        return peer

    def introduce(self, identity: bytes) -> tuple[str, Edge]:
        """Return the name of a sender on the bound socket and the edge that it speaks on.

        Raises ``LinkError`` for one that nothing is heard from.
        """
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
            raise LinkError("stranger", f"{self._role} has no link from {role}")
        if role in self._roles:
            raise LinkError("stranger", f"{text} is named like the process {role}")
        return text, self._bound[CLIENT]

    def admit(self, name: str, identity: str, edge: Edge, *, epoch: int, window: int) -> bool:
        """Make way for the Hello of a client or a role, or of its next life.

        Returns whether a former life has ended by it. Raises ``LinkError`` for one that may not
        come.
        """
        if window < 2:
            raise LinkError("handshake", f"a window of {window}")
        newcomer = Peer(name, identity, edge, self._link(edge, connects=False))
        if edge.connects == CLIENT:
            is_known = name in self.clients
            if not is_known and len(self.clients) >= self._clients_max:
                raise TooManyClients(
                    "clients", f"{self._clients_max} clients are connected already"
                )
            self.clients[name] = newcomer
            return is_known
        if self._key is not None and identity != process_identity(name, epoch, self._key):
            raise LinkError("stranger", f"{identity} is not a life of {name} in this run")
        peer = self.processes[name]
        if not peer.link.is_open:
            peer.identity = identity  # what waits for it waits in this link
            return False
        if identity == peer.identity or epoch <= peer.link.peer_epoch:
            raise LinkError("fenced", f"{identity} is not newer than {peer.identity}")
        self.processes[name] = newcomer
        return True

    def check(self) -> None:
        """Assert the invariants."""
        assert len(self.clients) <= self._clients_max
        assert not self.clients.keys() & self.processes.keys()
        for name, peer in [*self.clients.items(), *self.processes.items()]:
            assert peer.name == name
            peer.link.check()

    def _link(self, edge: Edge, *, connects: bool) -> Link:
        window = edge.backward_window if connects else edge.forward_window
        return Link(epoch=self._epoch, window=window, connects=connects)
