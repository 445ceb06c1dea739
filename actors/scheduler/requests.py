"""Requests that live, and the sequences of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from weft.actors.scheduler.sequence import Request, Sequence
from weft.runtime.messages import Generate, Refused


class Requests:
    """Owner of every request from acceptance to the end of its last choice.

    Invariants, checked by ``check``: every live sequence belongs to a live request, and a request
    without live ones is gone.
    """

    def __init__(self, *, queued_max: int) -> None:
        self._queued_max = queued_max
        self._requests: dict[tuple[str, str], Request] = {}  # by client and label
        self._sequences: dict[int, Sequence] = {}  # that live, by number
        self._next_sequence = 1

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

    def refusal(self, generate: Generate, *, waiting: int) -> Refused | None:
        """Say why a request cannot be taken while so many sequences wait, if it cannot."""
        if self.find(generate.client, generate.label) is not None:
            return Refused(
                generate.label,
                "duplicate_label",
                f"a request labelled {generate.label!r} is running; use another label",
                param="label",
            )
        if generate.choices > self._queued_max:  # trying again would not help
            return Refused(
                generate.label,
                "invalid_value",
                f"n: {generate.choices} is more than may wait here ({self._queued_max}); lower it, "
                f"or have max_queued_requests raised",
                param="n",
            )
        if waiting + generate.choices > self._queued_max:
            return Refused(
                generate.label,
                "queue_full",
                f"{waiting} requests are waiting already; try again later",
                retry_after_s=1.0,
            )
        return None

    def add(self, generate: Generate, now_ns: int) -> Request:
        """Take a request that ``refusal`` has nothing against; its choices get numbers."""
        request = Request(generate, now_ns)
        for choice in range(generate.choices):
            sequence = Sequence(
                self._next_sequence, request, choice, list(generate.prompt), generate.max_tokens
            )
            self._next_sequence += 1
            request.sequences.append(sequence)
            self._sequences[sequence.number] = sequence
        self._requests[request.key] = request
        return request

    def end(self, sequence: Sequence) -> None:
        """Forget a sequence, and with the last one its request."""
        assert not sequence.is_over
        sequence.is_over = True
        del self._sequences[sequence.number]
        if sequence.request.is_over:
            del self._requests[sequence.request.key]

    def check(self) -> None:
        """Assert the invariants."""
        for key, request in self._requests.items():
            assert request.key == key
            assert not request.is_over
        live = {s.number for r in self for s in r.sequences if not s.is_over}
        assert live == set(self._sequences)
