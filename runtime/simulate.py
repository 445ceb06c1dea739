"""All actors under one seeded clock and network, in one thread: a run is a function of its seed.

The actors, their links and the turn of the loop are the real ones; only time and the way of a
frame are not. Each frame is late by a random time, and frames of one link keep their order.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from weft.runtime.actor import Actor
from weft.runtime.endpoint import PROBE_INTERVAL_S, Parcel
from weft.runtime.inprocess import InprocessMailbox, Network
from weft.runtime.loop import IDLE_WAIT_S, turn
from weft.runtime.topology import CLIENT, TOPOLOGY, Topology

# Events that a failing run shows.
TRACE_TAIL = 20


class Conditions(NamedTuple):
    """How slow things are: bounds between which each time is drawn."""

    latency_ns: tuple[int, int] = (10_000, 2_000_000)  # of a frame
    turn_ns: tuple[int, int] = (1_000, 100_000)  # of an actor that had something to do


FAIR = Conditions()


class _Resident:
    """An actor in the world."""

    def __init__(
        self, actor: Actor[Any], mailbox: InprocessMailbox, turn_ns: tuple[int, int]
    ) -> None:
        self.actor = actor
        self.mailbox = mailbox
        self.turn_ns = turn_ns
        self.probes_ns = 0  # when it next looks after clients that are silent
        self.wakes_ns: int | None = None  # when its next turn is due
        self.busy_until_ns = 0


class World:
    """Spawn actors, then run until something holds."""

    def __init__(
        self, seed: int, *, topology: Topology = TOPOLOGY, conditions: Conditions = FAIR
    ) -> None:
        self.now_ns = 0
        self._random = random.Random(seed)
        self._seed = seed
        self._conditions = conditions
        self._network = Network(topology, self._post)
        self._residents: dict[str, _Resident] = {}  # by identity
        self._events: list[tuple[int, int, str, Parcel | None]] = []  # a heap
        self._count = 0  # of events ever: breaks ties in the order of their making
        self._due: dict[tuple[str, str, str], int] = {}  # link -> when its last frame arrives
        self._digest = hashlib.sha256()
        self._tail: deque[str] = deque(maxlen=TRACE_TAIL)

    def spawn(
        self,
        role: str,
        actor: Actor[Any],
        *,
        name: str | None = None,
        epoch: int = 1,
        turn_ns: tuple[int, int] | None = None,
    ) -> InprocessMailbox:
        """Bring an actor to life. A client, of which there may be many, has a ``name``.

        ``epoch`` counts a role's lives; ``turn_ns`` is for one that is faster or slower than the
        conditions say.
        """
        assert (name is not None) == (role == CLIENT), "clients have names, and only they"
        identity = name or f"{role}.{epoch}.{len(self._residents)}"
        mailbox = self._network.join(role, identity=identity, epoch=epoch)
        resident = _Resident(actor, mailbox, turn_ns or self._conditions.turn_ns)
        self._residents[mailbox.endpoint.identity] = resident
        self._wake(resident, self.now_ns)
        return mailbox

    def kill(self, name: str) -> None:
        """End an actor without a word; ``name`` is a role or a client's.

        What is on its way to it is lost, what is sent to it from now on cannot be delivered.
        """
        resident = self._residents.pop(self._identity(name))
        self._network.leave(resident.mailbox.endpoint)

    def retire(self, name: str) -> None:
        """Let an actor say Goodbye on every link and be gone."""
        self._residents.pop(self._identity(name)).mailbox.close()

    def pause(self, name: str, duration_s: float) -> None:
        """Give an actor no turn for a while; what comes for it waits."""
        resident = self._residents[self._identity(name)]
        resident.wakes_ns = None
        resident.busy_until_ns = self.now_ns + int(duration_s * 1e9)
        self._wake(resident, resident.busy_until_ns)

    def has_mail(self, name: str) -> bool:
        """Whether frames for an actor are on their way, or have come and are not read."""
        identity = self._identity(name)
        is_coming = any(to == identity and parcel for _, _, to, parcel in self._events)
        return is_coming or self._residents[identity].mailbox.has_frames

    def run_until(self, holds: Callable[[], bool], *, limit_s: float = 60.0) -> None:
        """Let virtual time pass until ``holds``; raise ``TimeoutError`` beyond the limit."""
        limit_ns = self.now_ns + int(limit_s * 1e9)
        while not holds():
            self.now_ns, _, identity, parcel = heapq.heappop(self._events)
            resident = self._residents.get(identity)
            if resident is None:
                continue  # it is gone
            if self.now_ns > limit_ns:
                raise TimeoutError(
                    f"seed {self._seed}: not in {limit_s} s\n" + "\n".join(self._tail)
                )
            if parcel is not None:
                self._record(identity, parcel)
                resident.mailbox.deliver(parcel)
                self._wake(resident, self.now_ns)
            elif resident.wakes_ns == self.now_ns:
                self._turn(resident)

    def check(self) -> None:
        """Assert every invariant of every actor and every link."""
        for resident in self._residents.values():
            resident.actor.check()
            resident.mailbox.endpoint.check()

    @property
    def digest(self) -> str:
        """The SHA-256 of every delivery so far: two runs of a seed have the same."""
        return self._digest.hexdigest()

    def _identity(self, name: str) -> str:
        for identity, resident in self._residents.items():
            role = resident.mailbox.endpoint.role
            if name == (identity if role == CLIENT else role):
                return identity
        raise AssertionError(f"nobody is called {name}")

    def _turn(self, resident: _Resident) -> None:
        resident.wakes_ns = None
        # Any frame ends a wait, though it bring nothing but credit: the actor may now go on.
        had_frames = resident.mailbox.has_frames
        did_work = turn(resident.actor, resident.mailbox, lambda: self.now_ns, 0.0)
        if self.now_ns >= resident.probes_ns:
            resident.probes_ns = self.now_ns + int(PROBE_INTERVAL_S * 1e9)
            resident.mailbox.probe()
        if did_work or had_frames:
            resident.busy_until_ns = self.now_ns + self._draw(resident.turn_ns)
            self._wake(resident, resident.busy_until_ns)
        else:
            self._wake(resident, self.now_ns + int(IDLE_WAIT_S * 1e9))

    def _wake(self, resident: _Resident, at_ns: int) -> None:
        """Give it a turn at ``at_ns``, or when its last one is over, unless it has one before."""
        at_ns = max(at_ns, resident.busy_until_ns)
        if resident.wakes_ns is None or at_ns < resident.wakes_ns:
            resident.wakes_ns = at_ns
            self._push(at_ns, resident.mailbox.endpoint.identity, None)

    def _post(self, mailbox: InprocessMailbox, parcel: Parcel) -> None:
        to = mailbox.endpoint.identity
        link = (to, parcel.port, parcel.identity)
        at_ns = max(self._due.get(link, 0), self.now_ns + self._draw(self._conditions.latency_ns))
        self._due[link] = at_ns
        self._push(at_ns, to, parcel)

    def _push(self, at_ns: int, identity: str, parcel: Parcel | None) -> None:
        self._count += 1
        heapq.heappush(self._events, (at_ns, self._count, identity, parcel))

    def _record(self, to: str, parcel: Parcel) -> None:
        event = f"{self.now_ns} {parcel.port} {parcel.identity} -> {to}"
        self._digest.update(event.encode() + parcel.frame)
        self._tail.append(f"{event}: {parcel.frame[:80]!r}")

    def _draw(self, bounds: tuple[int, int]) -> int:
        return self._random.randint(*bounds)
