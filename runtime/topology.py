"""Which processes exist and what flows between them: one table, from which the rest derives.

Addresses, credit, what may be said on a link, the order of starting and stopping, and the diagram
of ``weft topology`` all come from here. The table is a function of the configuration.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import NamedTuple

from weft.runtime.config import Config
from weft.runtime.messages import (
    Abort,
    Accepted,
    Acquire,
    Acquired,
    AcquireFailed,
    AdapterAnswer,
    AdapterReply,
    AdapterRequest,
    Away,
    Begin,
    Cancel,
    Catalog,
    CatalogSeen,
    ClientGone,
    DeviceRoom,
    Discover,
    Generate,
    HandOver,
    Inspect,
    Inspection,
    KeepOnDevice,
    ListAdapters,
    ListModels,
    LoadAdapter,
    Mark,
    Marked,
    Message,
    Models,
    PinAdapter,
    PrefetchAdapter,
    Progress,
    Refused,
    Reject,
    Release,
    Report,
    Resume,
    Retire,
    Retired,
    RunnerReady,
    Sampled,
    Settled,
    Step,
    StepDone,
    StopFound,
    Submit,
    Text,
    UnloadAdapter,
    Unread,
    Yield,
    Yielded,
)
from weft.runtime.replicas import Replica

# The name that stands for any process outside the table: the gateway, or a program of a user's.
CLIENT = "client"

# A socket's path must fit into sockaddr_un.sun_path, its end included.
SOCKET_PATH_BYTES_MAX = 107


class Process(NamedTuple):
    """One row of the table: a process and how it starts.

    ``start`` names a function as "module:function". An actor's is called with ``(role, config,
    run_dir, report, wakes, epoch)`` and returns the actor; one that is not an actor runs its own
    loop until SIGTERM, and is called with ``(config, run_dir, on_ready)``. ``wakes`` is an epoll
    object: what is registered with it gives the actor a turn once it is readable, as a message
    does. ``epoch`` counts the role's lives.
    """

    role: str
    purpose: str
    start: str
    is_actor: bool = True
    group: str = ""  # whoever computes has one, and all share the cores; the others get one core


class Edge(NamedTuple):
    """A link between two processes. Nothing but the listed messages is heard on it.

    A window is how many messages its receiver is ready to hold unacknowledged: the credit.
    """

    connects: str
    binds: str
    forward: tuple[type[Message], ...]  # from the side that connects
    backward: tuple[type[Message], ...]
    forward_window: int
    backward_window: int


class Topology(NamedTuple):
    """The whole table. Processes are listed in the order in which a drain stops them."""

    processes: tuple[Process, ...]
    edges: tuple[Edge, ...]

    @property
    def groups(self) -> dict[str, list[str]]:
        """The roles that compute each step together, by rank; each group by its name."""
        groups: dict[str, list[str]] = {}
        for process in self.processes:
            if process.group:
                groups.setdefault(process.group, []).append(process.role)
        return groups

    def process(self, role: str) -> Process:
        """Return the row of a role."""
        return next(process for process in self.processes if process.role == role)

    def connected_by(self, role: str) -> list[Edge]:
        """Return the edges that ``role`` opens."""
        return [edge for edge in self.edges if edge.connects == role]

    def bound_by(self, role: str) -> list[Edge]:
        """Return the edges that ``role`` waits for on its socket."""
        return [edge for edge in self.edges if edge.binds == role]

    def check(self) -> None:
        """Assert that the table makes sense."""
        roles = [process.role for process in self.processes]
        assert len(set(roles)) == len(roles), f"a role twice in {roles}"
        assert CLIENT not in roles
        ends = [(edge.connects, edge.binds) for edge in self.edges]
        assert len({frozenset(pair) for pair in ends}) == len(ends), f"a pair twice in {ends}"
        for edge in self.edges:
            assert edge.binds in roles, f"{edge.binds} is no process"
            assert edge.connects in (*roles, CLIENT), f"{edge.connects} is no process"
            assert edge.connects != edge.binds
            assert min(edge.forward_window, edge.backward_window) >= 2


def address(run_dir: Path, role: str) -> str:
    """Return the ZeroMQ address of a role's socket."""
    path = run_dir / f"{role}.sock"
    assert len(bytes(path)) <= SOCKET_PATH_BYTES_MAX, f"{path} is too long for a socket"
    return f"ipc://{path}"


def find(name: str, config: Config) -> Topology:
    """Return the topology that the function ``name`` ("module:function") makes of ``config``."""
    module, _, function = name.partition(":")
    found = vars(importlib.import_module(module))[function](config)
    assert isinstance(found, Topology), f"{name} returns a {type(found).__name__}"
    found.check()
    return found


def as_table(topology: Topology) -> str:
    """Return the processes and the edges as text."""
    lines = ["processes, in the order in which they stop:"]
    lines += [f"  {process.role:<12} {process.purpose}" for process in topology.processes]
    lines += ["", "links (connects -> binds; messages and window each way):"]
    for edge in topology.edges:
        lines.append(f"  {edge.connects} -> {edge.binds}")
        lines.append(f"      -> {edge.forward_window:>4}  {_names(edge.forward, ', ')}")
        lines.append(f"      <- {edge.backward_window:>4}  {_names(edge.backward, ', ')}")
    together = [group for group in topology.groups.values() if len(group) > 1]
    lines += [""] if together else []
    lines += [f"compute each step together: {', '.join(group)}" for group in together]
    return "\n".join(lines)


def as_mermaid(topology: Topology) -> str:
    """Return the diagram in Mermaid's language: an arrow for each direction of each edge."""
    inside = {end for edge in topology.edges for end in edge[:2]}
    outside = [process.role for process in topology.processes if process.role not in inside]
    lines = ["flowchart LR", f'    {CLIENT}["{", ".join([CLIENT, *outside])}"]']
    for edge in topology.edges:
        for source, target, flow in (
            (edge.connects, edge.binds, edge.forward),
            (edge.binds, edge.connects, edge.backward),
        ):
            if flow:
                lines.append(f'    {source} -->|"{_names(flow, "<br/>")}"| {target}')
    for group in topology.groups.values():
        if len(group) > 1:
            lines.append(f"    {' <-.-> '.join(group)}")
    return "\n".join(lines)


def _names(flow: tuple[type[Message], ...], separator: str) -> str:
    return separator.join(message.__name__ for message in flow) or "nothing"


_ACTOR = "weft.actors.start:build"

# What every runner hears and says. Only rank 0 answers: the others' tokens are the same.
_TO_RUNNER = (Step, Inspection)
_FROM_RUNNER = (RunnerReady, Inspection)
_FROM_FIRST_RUNNER = (RunnerReady, StepDone, Inspection)


def serving(config: Config) -> Topology:
    """Return weft's own table: schedulers, and one runner for each rank of each one's group."""
    return with_runners(config.tensor_parallel_size, replicas=config.data_parallel_size)


def with_runners(count: int, *, replicas: int = 1) -> Topology:
    """Return the table with ``count`` runners, of ranks 0 to ``count - 1``, for each replica.

    Windows: a client's 64 requests on the way are plenty, since each is answered at once; its text
    comes a message a step, and 256 steps are seconds of slack for a slow reader. Between actors
    1024 messages cover a burst from every client; a runner has two steps on the way at most.
    """
    every = [Replica(index, replicas) for index in range(replicas)]
    router = [Process("router", "chooses each request's scheduler", _ACTOR)]
    return Topology(
        processes=(
            Process("gateway", "HTTP", "weft.gateway.server:serve", is_actor=False),
            Process("tokenizer", "text to tokens, names to adapters", _ACTOR),
            *(router if replicas > 1 else []),
            *(Process(replica.scheduler, _purpose(replica), _ACTOR) for replica in every),
            Process("detokenizer", "tokens to text, stop strings", _ACTOR),
            *(runner for replica in every for runner in _runners(replica, count)),
            Process("adapters", "adapter weights in host memory", _ACTOR),
        ),
        edges=(
            Edge(
                CLIENT, "tokenizer",
                (
                    Submit, Cancel, ListModels, Inspect, LoadAdapter, UnloadAdapter, PinAdapter,
                    PrefetchAdapter, ListAdapters,
                ),
                (Refused, Models, AdapterAnswer),
                64, 64,
            ),
            Edge(CLIENT, "detokenizer", (), (Accepted, Text, Report), 2, 256),
            Edge(
                "adapters", "tokenizer", (Catalog,), (AdapterRequest, Discover, Inspection),
                16, 64,
            ),
            *(
                [
                    Edge(
                        "tokenizer", "router", (Generate, Abort, CatalogSeen),
                        (Reject, Away, AdapterReply), 1024, 1024,
                    )
                ]
                if replicas > 1
                else []
            ),
            *(edge for replica in every for edge in _edges(replica, count)),
        ),
    )  # fmt: skip


def _purpose(replica: Replica) -> str:
    whose = "every request" if replica.count == 1 else "its replica's requests"
    return f"owns {whose}; composes the steps"


def _runners(replica: Replica, count: int) -> list[Process]:
    what = "the model" if count == 1 else "its part of the model"
    return [
        Process(
            replica.runner(rank), f"{what}: executes the steps", _ACTOR, group=replica.scheduler
        )
        for rank in range(count)
    ]


def _edges(replica: Replica, runners: int) -> list[Edge]:
    """Return the edges of one scheduler.

    What the store says to clients, and an inspection, go from one scheduler to the next: the first
    has them from the store, the others from the router, which has them from the one before.
    """
    scheduler = replica.scheduler
    seen = (CatalogSeen,) if replica.is_first else ()
    from_store = (AdapterReply, Inspection) if replica.is_first else ()
    from_router = () if replica.is_first else (AdapterReply, Inspection)
    is_alone = replica.count == 1
    to_router = () if is_alone else (Progress, HandOver, Yielded)
    moves = () if is_alone else (Yield, HandOver, Settled)
    moving, moved = ((), ()) if is_alone else ((Mark, Resume), (Marked, Unread))
    to_next, to_detokenizer = ((), (Inspection,)) if replica.is_last else ((Inspection,), ())
    return [
        Edge(
            replica.door, scheduler,
            (Generate, Abort, *moves, *seen, *from_router),
            (Reject, Away, AdapterReply, *to_router, *to_next),
            1024, 1024,
        ),
        Edge(
            "adapters", scheduler,
            (Acquired, AcquireFailed, KeepOnDevice, Retire, *from_store),
            (Acquire, Release, *seen, Retired, DeviceRoom),
            1024, 1024,
        ),
        *(
            Edge(
                replica.runner(rank), scheduler, _FROM_RUNNER if rank else _FROM_FIRST_RUNNER,
                _TO_RUNNER, 64, 64,
            )
            for rank in range(runners)
        ),
        Edge(
            scheduler, "detokenizer",
            (Begin, Sampled, *moving, *to_detokenizer),
            (StopFound, ClientGone, *moved),
            1024, 1024,
        ),
    ]  # fmt: skip


# With a single runner. A client's edges are the same with any number.
TOPOLOGY = with_runners(1)
