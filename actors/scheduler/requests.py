"""Requests that live, and the sequences of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from weft.actors.scheduler.accounts import Payers
from weft.actors.scheduler.sequence import Request, Sequence
from weft.runtime.messages import Generate, HandOver, Refused
from weft.runtime.replicas import ALONE, Replica

# A queue moves within a second.
QUEUE_FULL_RETRY_S = 1.0


class Requests:
    """Owner of every request from acceptance to the end of its last choice.

    Invariants, checked by ``check``: every live sequence belongs to a live request, and a request
    without live ones is gone; accounts count the live sequences of their tenants and adapters.
    """

    def __init__(self, *, queued_max: int, payers: Payers, replica: Replica = ALONE) -> None:
        self._queued_max = queued_max
        self._payers = payers
        self._has_limits = replica.count == 1  # or the router has held them against all replicas
        self._requests: dict[tuple[str, str], Request] = {}  # by client and label
        self._sequences: dict[int, Sequence] = {}  # that live, by number
        self._next_sequence = replica.first_number + 1

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests.values())

    @property
    def sequences(self) -> Iterable[Sequence]:
        """Every sequence that is not over."""
        return self._sequences.values()

    @property
    def sequence_count(self) -> int:
        """Sequences that are not over."""
        return len(self._sequences)

    def find(self, client: str, label: str) -> Request | None:
        """Return a client's request."""
        return self._requests.get((client, label))

    def sequence(self, number: int) -> Sequence | None:
        """Return a sequence that is not over."""
        return self._sequences.get(number)

    def refusal(
        self, generate: Generate, now_ns: int, *, room: int, has_left: bool = False
    ) -> Refused | None:
        """Say why a request cannot be taken while so many more may wait, if it cannot.

        ``has_left``: one of its client and label is with another scheduler.
        """
        label = generate.label
        if has_left or self.find(generate.client, label) is not None:
            text = f"a request labelled {label!r} is running; use another label"
            return Refused(label, "duplicate_label", text, param="label")
        if generate.choices > self._queued_max:  # trying again would not help
            text = f"n: {generate.choices} is more than may wait here ({self._queued_max}); lower "
            text += "it, or have max_queued_requests raised"
            return Refused(label, "invalid_value", text, param="n")
        refused = self._payers.refusal(generate, now_ns) if self._has_limits else None
        if refused is not None:
            return refused
        if generate.choices > room:
            text = "too many requests are waiting already; try again later"
            return Refused(label, "queue_full", text, retry_after_s=QUEUE_FULL_RETRY_S)
        return None

    def add(self, generate: Generate, now_ns: int) -> Request:
        """Take a request that ``refusal`` has nothing against; its choices get numbers."""
        tenant, adapters = self._payers.take(generate, now_ns)
        request = Request(generate, now_ns, tenant, adapters)
        for choice in range(generate.choices):
            sequence = Sequence(
                self._next_sequence, request, choice, list(generate.prompt), generate.max_tokens
            )
            self._next_sequence += 1
            request.sequences.append(sequence)
            self._sequences[sequence.number] = sequence
        self._requests[request.key] = request
        return request

    def take(self, handed: HandOver, now_ns: int) -> Request:
        """Take a request that another scheduler had: its choices keep their numbers."""
        generate = handed.generate
        payers = self._payers.resume(generate, len(handed.choices), now_ns)
        request = Request(generate, handed.accepted_ns, *payers)
        request.admitted_ns, request.first_token_ns = handed.admitted_ns, handed.first_token_ns
        request.tier = handed.tier
        for choice in handed.choices:
            tokens = [*generate.prompt, *choice.output]
            sequence = Sequence(
                choice.sequence, request, choice.choice, tokens, generate.max_tokens
            )
            sequence.cached_tokens = choice.cached_tokens
            request.sequences.append(sequence)
            self._sequences[sequence.number] = sequence
        assert request.key not in self._requests, f"{request.key} are two requests"
        self._requests[request.key] = request
        return request

    def leave(self, request: Request) -> None:
        """Forget a request that another scheduler goes on with."""
        for sequence in request.sequences:
            if not sequence.is_over:
                del self._sequences[sequence.number]
                self._payers.give_back(request.tenant, request.limited)
        del self._requests[request.key]

    def end(self, sequence: Sequence) -> None:
        """Forget a sequence, and with the last one its request."""
        assert not sequence.is_over
        sequence.is_over = True
        del self._sequences[sequence.number]
        request = sequence.request
        self._payers.give_back(request.tenant, request.limited)
        if request.is_over:
            del self._requests[request.key]

    def check(self) -> None:
        """Assert the invariants."""
        for key, request in self._requests.items():
            assert request.key == key
            assert not request.is_over
        live = {s.number for r in self for s in r.sequences if not s.is_over}
        assert live == set(self._sequences)
        requests = [sequence.request for sequence in self.sequences]
        self._payers.tenants.check(Counter(request.tenant.name for request in requests))
        adapters = [adapter.name for request in requests for adapter in request.limited]
        self._payers.adapters.check(Counter(adapters))
