"""Which requests may have been the cause when their runners died."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from weft.actors.scheduler.sequence import Request, Sequence

# Deaths of runners that computed nothing but one request, until it is given up.
DEATHS_MAX = 3


@dataclass(eq=False, slots=True)
class Doubt:
    """What is held against a request: nothing, if no sequence of it has to come further."""

    past: dict[Sequence, int] = field(default_factory=dict)  # tokens each must know to be cleared
    is_suspect: bool = False
    deaths_alone: int = 0


class Suspects:
    """Finds the request that kills its runners, without giving up any other.

    Most deaths have nothing to do with requests. So those that were being computed go on together,
    as before, but each is in doubt until it has come further than it was. If runners die once more
    with one that is in doubt, it is suspected, and as long as there are suspects, one at a time is
    computed and nobody else: until it has come further too, or was alone at ``DEATHS_MAX`` deaths.

    Between two deaths everybody who is suspected comes further or is given up; so, whatever it is
    that kills runners, all requests end.

    Invariant, checked by ``check``: what is held against a request is of its own sequences.
    """

    def __init__(self) -> None:
        self._doubts: dict[Request, Doubt] = {}

    def __len__(self) -> int:
        return len(self._doubts)

    @property
    def alone(self) -> Request | None:
        """The request that is to be computed by itself, if there is a suspect.

        The last that came is first: those that have had their turn wait before all others, and
        are in order when the oldest has had it.
        """
        suspects = [request for request, doubt in self._doubts.items() if doubt.is_suspect]
        return max(suspects, key=_age) if suspects else None

    def died(self, computed: Collection[Sequence]) -> Request | None:
        """Hear who was being computed when the runners died; return who is to be given up.

        ``in_flight`` of the sequences must still be as it was.
        """
        requests = {sequence.request for sequence in computed}
        for request in sorted(requests, key=_age):
            if request.is_over:
                continue
            doubt = self._doubts.get(request)
            if doubt is None:
                doubt = self._doubts[request] = Doubt()
            else:
                doubt.is_suspect = True
            for sequence in request.sequences:
                if sequence in computed and not sequence.is_over:
                    doubt.past[sequence] = len(sequence.tokens) + max(1, sequence.in_flight)
            if len(requests) == 1:
                doubt.deaths_alone += 1
                if doubt.deaths_alone == DEATHS_MAX:
                    return request
        return None

    def clear(self) -> None:
        """Trust again who has come further than when the runners died, or is over."""
        for request, doubt in list(self._doubts.items()):
            if all(s.is_over or len(s.tokens) >= past for s, past in doubt.past.items()):
                del self._doubts[request]

    def is_suspect(self, request: Request) -> bool:
        """Whether a request is to be computed by itself."""
        doubt = self._doubts.get(request)
        return doubt is not None and doubt.is_suspect

    def forget(self, request: Request) -> Doubt:
        """Return what is held against a request that leaves."""
        return self._doubts.pop(request, None) or Doubt()

    def remember(self, request: Request, doubt: Doubt) -> None:
        """Note what is held against a request that comes from elsewhere."""
        if doubt.past:
            self._doubts[request] = doubt

    def check(self) -> None:
        """Assert the invariant."""
        for request, doubt in self._doubts.items():
            assert all(sequence.request is request for sequence in doubt.past)


def _age(request: Request) -> int:
    return request.sequences[0].number
