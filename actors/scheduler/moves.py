"""Requests that go from this scheduler to another one, where there are several."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from weft.actors.scheduler.sequence import Request
from weft.actors.scheduler.suspects import Suspects
from weft.runtime.messages import Generate, HandedChoice, HandOver, Mark, Message, Yielded


class Moves:
    """Which requests are about to leave, what is to be said of them, and which others have.

    A request that is to leave is computed no more. It leaves once the detokenizer has heard all
    that was said of it (``Mark``): then nobody can be told of a token twice, whoever goes on with
    it, and what the detokenizer has to say of it has been said here. It may end before.

    Until a request that has left is over, nothing that it may need is given up here: its label is
    in use, and content that it was accepted with is not retired.

    Invariant, checked by ``check``: who is about to leave is marked so, and nobody else is.
    """

    def __init__(self) -> None:
        self._marks = 0
        self._leaving: deque[tuple[int, list[Request]]] = deque()  # by the mark they wait for
        self._away: dict[str, Generate] = {}  # by request id: not over, and with another scheduler
        self._labels: set[tuple[str, str]] = set()  # of these, with their clients
        self._messages: deque[Message] = deque()  # for the router

    def __len__(self) -> int:
        return len(self._away)

    @property
    def is_idle(self) -> bool:
        """Whether nobody is about to leave, and all has been said."""
        return not (self._leaving or self._messages)

    @property
    def adapters(self) -> Iterator[str]:
        """Those of requests that have left and are not over."""
        for generate in self._away.values():
            for use in generate.adapters:
                yield use.digest

    def has_left(self, client: str, label: str) -> bool:
        """Whether a client's request of this label is with another scheduler."""
        return (client, label) in self._labels

    def leave(self, requests: list[Request]) -> Mark:
        """Let requests be about to leave; return what the detokenizer is to answer."""
        for request in requests:
            request.is_leaving = True
        self._marks += 1
        self._leaving.append((self._marks, requests))
        return Mark(self._marks)

    def marked(self, number: int) -> list[Request]:
        """Return who leaves now: those that are not over."""
        expected, requests = self._leaving.popleft()
        assert number == expected, f"mark {number}, not {expected}"
        return [request for request in requests if not request.is_over]

    def left(self, handed: Iterable[HandOver]) -> None:
        """Remember those that leave, to tell the router: it was all that it has asked for."""
        for hand_over in handed:
            generate = hand_over.generate
            self._away[generate.request_id] = generate
            self._labels.add((generate.client, generate.label))
            self._messages.append(hand_over)
        self._messages.append(Yielded())

    def over(self, request_id: str) -> None:
        """Forget one that has left: it has ended, or come back."""
        generate = self._away.pop(request_id, None)
        if generate is not None:
            self._labels.remove((generate.client, generate.label))

    def due(self, room: int) -> Iterator[Message]:
        """Yield what the router is to hear, as far as there is room."""
        for _ in range(min(room, len(self._messages))):
            yield self._messages.popleft()

    def check(self, requests: Iterable[Request]) -> None:
        """Assert the invariant; ``requests`` are those that are not over."""
        leaving = {r for _, group in self._leaving for r in group if not r.is_over}
        assert leaving == {request for request in requests if request.is_leaving}


def handed(request: Request, suspects: Suspects) -> HandOver:
    """Return what another scheduler has to know of a request, to go on with it."""
    past, deaths_alone = suspects.forget(request)
    prompt_tokens = len(request.generate.prompt)
    return HandOver(
        request.generate,
        [
            HandedChoice(
                sequence.number,
                sequence.choice,
                sequence.tokens[prompt_tokens:],
                sequence.cached_tokens,
                past.get(sequence),
            )
            for sequence in request.sequences
            if not sequence.is_over
        ],
        request.accepted_ns,
        request.admitted_ns,
        request.first_token_ns,
        request.tier,
        deaths_alone,
    )


def may_leave(request: Request, *, has_runners: bool, is_suspect: bool) -> bool:
    """Return whether a request would be better off elsewhere.

    With runners that is who has not begun: what others have computed would be computed twice. A
    suspect stays with those that it may have killed, and kills no others.
    """
    if request.is_leaving or is_suspect:
        return False
    live = [sequence for sequence in request.sequences if not sequence.is_over]
    has_begun = any(sequence.cached_tokens is not None for sequence in live)
    return not (has_runners and has_begun)
