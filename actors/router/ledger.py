"""Which request is whose: every one that a replica has, and what is known of each replica."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from weft.actors.router.balance import Load, expected_tokens
from weft.actors.router.prefixes import Prefixes, marks
from weft.actors.scheduler.accounts import Account
from weft.runtime.messages import Generate


class Wants(NamedTuple):
    """What a request can use of a replica, if it is there."""

    adapters: list[str]  # digests
    marks: list[int]  # of its prompt's beginnings


def wants_of(generate: Generate, *, looks_at_prompt: bool) -> Wants:
    """Return what a request can use."""
    adapters = [use.digest for use in generate.adapters]
    prompt, name_space = generate.prompt, [generate.salt]
    if generate.lora_start:
        # What lies before an activated adapter is the base's, whoever has computed it.
        prompt = prompt[: generate.lora_start]
    else:
        name_space += [f"{use.digest} {use.scale}" for use in generate.adapters]
    return Wants(adapters, marks(tuple(name_space), prompt) if looks_at_prompt else [])


@dataclass(eq=False, slots=True)
class Routed:
    """A request that was sent to a replica, until the last of its choices is over."""

    number: int  # counted from 1, in the order in which they came
    request_id: str
    client: str
    label: str
    wants: Wants
    tokens: int  # that it is expected to take
    tenant: Account
    adapters: list[Account]  # if adapters are limited
    replica: int
    choices: int  # that are not over
    pending: Generate | None  # until a replica has accepted it
    full: set[int] = field(default_factory=set)  # replicas that had no room for it
    is_cancelled: bool = False
    former: set[int] = field(default_factory=set)  # replicas that have handed it over
    stays: bool = False  # its replica was asked for it, and may have reasons to keep it


class Ledger:
    """Every request that has a replica, and what each replica has that requests can use.

    Invariants, checked by ``check``: what is counted for each replica is that of its requests; who
    is pending is listed in the order in which it came.
    """

    def __init__(self, replicas: int) -> None:
        self.routed = 0  # ever
        self._requests: dict[str, Routed] = {}  # by request id
        self._pending: dict[str, Routed] = {}  # by request id; the oldest first
        self._moving: set[str] = set()  # handed over, and not taken yet
        self._keys: dict[tuple[str, str], dict[str, Routed]] = {}  # by client and label
        self._choices = [0] * replicas
        self._tokens = [0] * replicas
        self._adapters: list[Counter[str]] = [Counter() for _ in range(replicas)]  # of requests
        self._devices: list[set[str]] = [set() for _ in range(replicas)]
        self._prefixes = [Prefixes() for _ in range(replicas)]

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Routed]:
        return iter(self._requests.values())

    @property
    def pending(self) -> int:
        """Requests that no replica has accepted yet."""
        return len(self._pending)

    @property
    def oldest_pending(self) -> int | None:
        """The number of the oldest of them."""
        return next((routed.number for routed in self._pending.values()), None)

    @property
    def moving(self) -> int:
        """Requests that one replica has handed over and no other has taken yet."""
        return len(self._moving)

    def of(self, replica: int) -> Iterator[Routed]:
        """Yield a replica's requests, the oldest first."""
        return (routed for routed in self._requests.values() if routed.replica == replica)

    def choices(self, replica: int) -> int:
        """Return how many choices of a replica's requests are not over."""
        return self._choices[replica]

    def tokens(self, replica: int) -> int:
        """Return what a replica's requests are expected to take."""
        return self._tokens[replica]

    def loads(self, wants: Wants) -> list[Load]:
        """Return each replica's load, as a request that wants this sees it."""
        return [
            Load(
                tokens,
                sum(1 for d in wants.adapters if d not in device and not wanted[d]),
                prefixes.tokens(wants.marks),
                len(device),
            )
            for tokens, device, wanted, prefixes in zip(
                self._tokens, self._devices, self._adapters, self._prefixes, strict=True
            )
        ]

    def get(self, request_id: str) -> Routed:
        """Return a request that is not over."""
        return self._requests[request_id]

    def find(self, client: str, label: str) -> list[Routed]:
        """Return a client's requests of this label: of more than one, the replica refuses some."""
        return list(self._keys.get((client, label), {}).values())

    def add(
        self,
        generate: Generate,
        wants: Wants,
        replica: int,
        tenant: Account,
        adapters: list[Account],
    ) -> None:
        """Note a request that is sent to a replica."""
        self.routed += 1
        routed = Routed(
            number=self.routed,
            request_id=generate.request_id,
            client=generate.client,
            label=generate.label,
            wants=wants,
            tokens=expected_tokens(generate),
            tenant=tenant,
            adapters=adapters,
            replica=replica,
            choices=generate.choices,
            pending=generate,
        )
        self._prefixes[replica].note(wants.marks)
        self._requests[routed.request_id] = self._pending[routed.request_id] = routed
        self._keys.setdefault((routed.client, routed.label), {})[routed.request_id] = routed
        self._count(routed, 1)

    def move(self, routed: Routed, replica: int) -> None:
        """Note that a request is sent to another replica; it keeps its place among the pending."""
        self._count(routed, -1)
        routed.replica = replica
        self._count(routed, 1)
        self._prefixes[replica].note(routed.wants.marks)

    def hand_over(self, routed: Routed, replica: int) -> None:
        """Note that an accepted request is sent to another replica, which has to take it."""
        assert routed.pending is None, f"{routed.request_id} was not accepted"
        self._moving.add(routed.request_id)
        routed.former.add(routed.replica)
        routed.stays = False
        self.move(routed, replica)

    def accept(self, request_id: str) -> None:
        """Note that its replica has accepted a request, or taken one that another had."""
        if request_id in self._moving:
            self._moving.remove(request_id)
        else:
            self._pending.pop(request_id).pending = None

    def end_choice(self, request_id: str) -> Routed:
        """Note that one choice of a request is over; forget the request with the last."""
        routed = self._requests[request_id]
        routed.choices -= 1
        self._choices[routed.replica] -= 1
        if routed.choices == 0:
            self.remove(routed)
        return routed

    def remove(self, routed: Routed) -> None:
        """Forget a request."""
        del self._requests[routed.request_id]
        self._pending.pop(routed.request_id, None)
        key = routed.client, routed.label
        del self._keys[key][routed.request_id]
        if not self._keys[key]:
            del self._keys[key]
        self._count(routed, -1)

    def note_device(self, replica: int, loaded: Iterable[str], evicted: Iterable[str]) -> None:
        """Note which adapters have come to a device, and which have gone."""
        self._devices[replica].update(loaded)
        self._devices[replica].difference_update(evicted)

    def note_runners(self, replica: int, *, are_there: bool) -> None:
        """Note that a replica has lost its runners, or has others."""
        if not are_there:
            self._prefixes[replica] = Prefixes()  # what was computed there
        for routed in self.of(replica):
            routed.stays = False

    def check(self) -> None:
        """Assert the invariants."""
        numbers = [routed.number for routed in self._pending.values()]
        assert numbers == sorted(numbers)
        assert self._pending.keys() == {id_ for id_, r in self._requests.items() if r.pending}
        assert not any(self._requests[moving].pending for moving in self._moving)
        assert self._requests.keys() == {id_ for ids in self._keys.values() for id_ in ids}
        for replica, tokens in enumerate(self._tokens):
            here = [routed for routed in self._requests.values() if routed.replica == replica]
            assert tokens == sum(routed.tokens for routed in here)
            assert self._choices[replica] == sum(routed.choices for routed in here)
            wanted = Counter(digest for routed in here for digest in routed.wants.adapters)
            assert +self._adapters[replica] == wanted

    def _count(self, routed: Routed, sign: int) -> None:
        self._tokens[routed.replica] += sign * routed.tokens
        self._choices[routed.replica] += sign * routed.choices
        wanted = self._adapters[routed.replica]
        for digest in routed.wants.adapters:
            wanted[digest] += sign
            if not wanted[digest]:
                del wanted[digest]
