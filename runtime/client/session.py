"""A client's two links, and everything that waits for an answer from them. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from weft.runtime.client.events import (
    Accepted,
    Adapter,
    Asker,
    Changed,
    Disconnected,
    Finished,
    Model,
    Models,
    Refused,
    Report,
    Text,
    TokenLogprob,
)
from weft.runtime.client.pending import Answer, Question, Request
from weft.runtime.client.wire import Fields, Link

# How long weft may take to answer what it answers at once.
ANSWER_TIMEOUT_S = 30.0

_NOBODY = Asker()

_METRICS_FIELDS = (
    "digest", "names", "requests", "prompt_tokens", "cached_tokens", "output_tokens", "queue_s",
    "queue_s_sum", "first_token_s", "first_token_s_sum", "resident", "hits", "running", "waiting",
)  # fmt: skip
_DEFAULTS_FIELDS = ("chat_template", "system_prompt", "stop", "added_tokens", "sampling")
_TENANT_FIELDS = (
    "tenant", "requests", "rejected", "prompt_tokens", "output_tokens", "queue_s", "queue_s_sum",
    "counter",
)  # fmt: skip
_LOAD_FIELDS = ("process", "tier", "seconds", "seconds_sum")

Described = TypeVar("Described", Model, Adapter)


class Session:
    """Both links, and everything that waits for an answer. Labels are the session's own.

    A weft that stops closes the tokenizer's link first: what it has taken is still answered.

    Invariant: every live sequence belongs to a request that is not over.
    """

    def __init__(self) -> None:
        self.tokenizer = Link("tokenizer")
        self.detokenizer = Link("detokenizer")
        self.failure: Disconnected | None = None  # nothing can be asked any more
        self._count = 0
        self._requests: dict[str, Request] = {}  # live, by label
        self._sequences: dict[int, tuple[Request, int]] = {}  # live: request and choice
        self._questions: dict[str, Question[Any]] = {}

    @property
    def is_open(self) -> bool:
        """Whether both links have been welcomed."""
        return self.tokenizer.is_open and self.detokenizer.is_open

    def submit(  # noqa: PLR0913 - as for the clients' generate
        self,
        wake: Callable[[], None],
        *,
        model: str | None,
        messages: Sequence[Mapping[str, Any]] | None,
        prompt: str | Sequence[int] | None,
        sampling: Mapping[str, Any],
        asker: Asker = _NOBODY,
        lora: Sequence[Mapping[str, Any]] | None = None,
    ) -> Request:
        """Ask for a completion."""
        request = Request(self._label(), wake)
        if prompt is not None and not isinstance(prompt, str):
            prompt = list(prompt)
        chat = None if messages is None else [dict(message) for message in messages]
        fields = ["Submit", request.label, model, chat, prompt, dict(sampling), *asker]
        if lora is not None:
            fields.append([dict(each) for each in lora])
        if self.failure is not None:
            request.fail(self.failure)
            return request
        self.tokenizer.send(fields)
        self._requests[request.label] = request
        return request

    def cancel(self, request: Request) -> None:
        """Give a request up: it ends as ``Finished``, or ``Refused`` if it was not accepted yet."""
        if not request.is_over and self.failure is None:
            self.tokenizer.send(["Cancel", request.label])

    def list_models(self, wake: Callable[[], None]) -> Question[Models]:
        """Ask for every name that ``model`` may take, the base first."""
        return self._ask("ListModels", Question[Models](wake))

    def inspect(self, wake: Callable[[], None]) -> Question[Report]:
        """Ask every process of weft to check its invariants, and for their counters."""
        return self._ask("Inspect", Question[Report](wake))

    def operate(
        self, wake: Callable[[], None], name: str, *fields: str | bool | None
    ) -> Question[Changed]:
        """Send an operation on adapters: a message's name, and its fields after the label."""
        return self._ask(name, Question[Changed](wake), *fields)

    def receive(self, link: Link, frame: bytes) -> None:
        """Take in what came through a link."""
        try:
            message = link.receive(frame)
        except Disconnected as failure:
            self.lose(link, failure)
            return
        if message is not None:
            name, fields = message
            # Messages of a later version are not for this client: it did not ask for them.
            handle = _HANDLERS.get(name)
            if handle is not None:
                handle(self, fields)

    def lose(self, link: Link, failure: Disconnected) -> None:
        """Take in that nothing more comes through a link."""
        self.failure = self.failure or failure
        questions = list(self._questions.values())
        self._questions.clear()
        for question in questions:
            question.settle(failure)
        if link is self.detokenizer:
            requests = list(self._requests.values())
            self._requests.clear()
            self._sequences.clear()
            for request in requests:
                request.fail(failure)

    def _ask(
        self, name: str, question: Question[Answer], *fields: str | bool | None
    ) -> Question[Answer]:
        if self.failure is not None:
            question.settle(self.failure)
            return question
        label = self._label()
        self._questions[label] = question
        self.tokenizer.send([name, label, *fields])
        return question

    def _label(self) -> str:
        self._count += 1
        return str(self._count)

    def _refused(self, fields: Fields) -> None:
        label, code, text, param, retry_after_s = [*fields, None, None][:5]
        refused = Refused(code, text, param, retry_after_s)
        request = self._requests.pop(label, None)
        question = self._questions.pop(label, None)
        if request is not None:
            request.fail(refused)
        elif question is not None:
            question.settle(refused)

    def _models(self, fields: Fields) -> None:
        label, models, away, degraded = [*fields, None, None][:4]
        question = self._questions.pop(label, None)
        if question is not None:
            described = [_with_defaults(Model(*model)) for model in models]
            question.settle(Models(described, away, degraded))

    def _changed(self, fields: Fields) -> None:
        label, outcome, adapters = fields
        question = self._questions.pop(label, None)
        if question is not None:
            described = [_with_defaults(Adapter(*adapter)) for adapter in adapters]
            question.settle(Changed(outcome, described))

    def _report(self, fields: Fields) -> None:
        label, sections, adapters, tenants, loads = [*fields, [], []][:5]
        question = self._questions.pop(label, None)
        if question is not None:
            of_adapters = [dict(zip(_METRICS_FIELDS, values, strict=False)) for values in adapters]
            of_tenants = [dict(zip(_TENANT_FIELDS, values, strict=False)) for values in tenants]
            of_loads = [dict(zip(_LOAD_FIELDS, values, strict=False)) for values in loads]
            question.settle(Report(sections, of_adapters, of_tenants, of_loads))

    def _accepted(self, fields: Fields) -> None:
        label, request_id, first_sequence, choices, prompt_tokens = fields
        request = self._requests[label]
        for choice in range(choices):
            self._sequences[first_sequence + choice] = request, choice
        request.hear(Accepted(request_id, prompt_tokens, choices))

    def _text(self, fields: Fields) -> None:
        sequences, texts, ends, logprobs = [*fields, [], []][:4]
        by_index: dict[int, list[TokenLogprob]] = {}
        for index, token, token_bytes, logprob, top in logprobs:
            alternatives = [tuple(entry) for entry in top]
            entry = TokenLogprob(token, token_bytes, logprob, alternatives)
            by_index.setdefault(index, []).append(entry)
        for index, (sequence, text) in enumerate(zip(sequences, texts, strict=True)):
            token_logprobs = by_index.get(index, [])
            if text or token_logprobs:
                request, choice = self._sequences[sequence]
                request.hear(Text(choice, text, token_logprobs))
        for fields_of_end in ends:
            sequence, *rest = fields_of_end
            request, choice = self._sequences.pop(sequence)
            request.hear(Finished(choice, *[*rest, None, None, None][:6]))
            if request.is_over:
                del self._requests[request.label]


def unanswered() -> Disconnected:
    """Return the error of a weft that has taken longer than ``ANSWER_TIMEOUT_S``."""
    return Disconnected(f"weft has not answered in {ANSWER_TIMEOUT_S:.0f} s")


def _with_defaults(described: Described) -> Described:
    """Return a model or an adapter whose defaults, an array on the wire, have their names."""
    if described.defaults is None:
        return described
    named = dict(zip(_DEFAULTS_FIELDS, described.defaults, strict=False))
    return described._replace(defaults=named)


_HANDLERS: dict[str, Callable[[Session, Fields], None]] = {
    "Refused": Session._refused,
    "Models": Session._models,
    "Report": Session._report,
    "AdapterAnswer": Session._changed,
    "Accepted": Session._accepted,
    "Text": Session._text,
}
