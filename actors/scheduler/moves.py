"""Requests that go from one scheduler to another, where there are several."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from weft.actors.scheduler.chronicle import Chronicle
from weft.actors.scheduler.outbox import Outbox
from weft.actors.scheduler.requests import Requests
from weft.actors.scheduler.sequence import Request
from weft.actors.scheduler.suspects import Doubt, Suspects
from weft.actors.scheduler.waiting import Waiting
from weft.runtime.messages import Generate, HandedChoice, HandOver, Mark, Message, Yield, Yielded


class Moves:
    """Which requests are about to leave, which have left and are not over, and who comes.

    A request that is to leave is computed no more. It leaves once the detokenizer has heard all
    that was said of it (``Mark``): nobody is told of a token twice then, whoever goes on with it,
    and what the detokenizer had to say of it has been heard here. It may end before.

    Until a request that has left is over, nothing that it may need is given up here: its label is
    in use, and the content of its adapters is not retired.

    Invariant, checked by ``check``: who is about to leave is marked so, and nobody else is.
    """

    def __init__(
        self,
        requests: Requests,
        waiting: Waiting,
        suspects: Suspects,
        outbox: Outbox,
        chronicle: Chronicle,
    ) -> None:
        self._requests = requests
        self._waiting = waiting
        self._suspects = suspects
        self._outbox = outbox
        self._chronicle = chronicle
        self._marks = 0
        self._leaving: deque[tuple[int, list[Request]]] = deque()  # by the mark they wait for
        self._elsewhere: dict[str, Generate] = {}  # by request id: who has left and is not over
        self._labels: set[tuple[str, str]] = set()  # of these, with their clients
        self._messages: deque[Message] = deque()  # for the router

    def __len__(self) -> int:
        return len(self._elsewhere)

    @property
    def are_told(self) -> bool:
        """Whether the router has heard of everybody who leaves."""
        return not (self._leaving or self._messages)

    @property
    def adapters(self) -> Iterator[str]:
        """Those of requests that have left and are not over."""
        for generate in self._elsewhere.values():
            for use in generate.adapters:
                yield use.digest

    def has_left(self, client: str, label: str) -> bool:
        """Whether a client's request of this label has left, and is not over."""
        return (client, label) in self._labels

    def begin(self, asked: Yield, *, has_runners: bool) -> None:
        """Compute nothing more of those that may leave, and wait until all is heard of them."""
        request_ids = {*asked.request_ids}
        leaving = [
            request
            for request in self._requests
            if request.generate.request_id in request_ids
            and self._may_leave(request, has_runners=has_runners, with_suspects=asked.with_suspects)
        ]
        places = {sequence: place for place, sequence in enumerate(self._waiting.first)}

        def place(request: Request) -> int:
            return min((places[s] for s in request.sequences if s in places), default=len(places))

        # Who takes them puts each of those that ran before all others: so the first comes last.
        leaving.sort(key=place, reverse=True)
        for request in leaving:
            request.is_leaving = True
            for sequence in request.sequences:
                if not sequence.is_over:
                    self._waiting.remove(sequence)
        self._marks += 1
        self._leaving.append((self._marks, leaving))
        self._outbox.move(Mark(self._marks))

    def go(self, mark: int) -> None:
        """Let go of those of whom everything has been heard."""
        expected, requests = self._leaving.popleft()
        assert mark == expected, f"mark {mark}, not {expected}"
        for request in requests:
            if request.is_over:
                continue
            generate = request.generate
            self._messages.append(self._hand_over(request))
            self._requests.leave(request)
            self._elsewhere[generate.request_id] = generate
            self._labels.add(request.key)
            self._chronicle.left(request)
        self._messages.append(Yielded())

    def take(self, handed: HandOver, now_ns: int) -> Request:
        """Let a request wait here that another scheduler had: first of all, if it had begun."""
        self.settle([handed.generate.request_id])  # it may have left from here
        request = self._requests.take(handed, now_ns)
        pairs = list(zip(request.sequences, handed.choices, strict=True))
        past = {s: choice.trusted_at for s, choice in pairs if choice.trusted_at is not None}
        self._suspects.remember(request, Doubt(past, handed.is_suspect, handed.deaths_alone))
        for sequence in reversed(request.sequences):
            if sequence.cached_tokens is None:
                self._waiting.append(sequence)
            else:
                self._waiting.prepend(sequence)
        self._chronicle.came(request)
        return request

    def settle(self, request_ids: Iterable[str]) -> None:
        """Forget requests that have left: they are over, or have come back."""
        for request_id in request_ids:
            generate = self._elsewhere.pop(request_id, None)
            if generate is not None:
                self._labels.remove((generate.client, generate.label))

    def due(self, room: int) -> Iterator[Message]:
        """Yield what the router is to hear, as far as there is room."""
        for _ in range(min(room, len(self._messages))):
            yield self._messages.popleft()

    def check(self) -> None:
        """Assert the invariant."""
        leaving = {r for _, group in self._leaving for r in group if not r.is_over}
        assert leaving == {request for request in self._requests if request.is_leaving}

    def _may_leave(self, request: Request, *, has_runners: bool, with_suspects: bool) -> bool:
        """Return whether a request would be better off elsewhere.

        With runners that is who has not begun: what these have computed would be computed twice. A
        suspect stays with the runners that it may have killed, and kills no others, unless these
        may never come back.
        """
        is_kept = self._suspects.is_suspect(request) and (has_runners or not with_suspects)
        if request.is_leaving or is_kept:
            return False
        live = [sequence for sequence in request.sequences if not sequence.is_over]
        return not (has_runners and any(s.cached_tokens is not None for s in live))

    def _hand_over(self, request: Request) -> HandOver:
        doubt = self._suspects.forget(request)
        prompt_tokens = len(request.generate.prompt)
        return HandOver(
            request.generate,
            [
                HandedChoice(
                    sequence.number,
                    sequence.choice,
                    sequence.tokens[prompt_tokens:],
                    sequence.cached_tokens,
                    doubt.past.get(sequence),
                )
                for sequence in request.sequences
                if not sequence.is_over
            ],
            request.accepted_ns,
            request.admitted_ns,
            request.first_token_ns,
            request.tier,
            doubt.deaths_alone,
            doubt.is_suspect,
        )
