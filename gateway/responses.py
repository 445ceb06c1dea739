"""An answer as an HTTP response: whole, or as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Protocol

import msgspec
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from weft.gateway import errors
from weft.gateway.answer import Answer
from weft.runtime.client import Disconnected, Failed, Finished, Text, TokenLogprob

Json = dict[str, Any]

# nginx's status for a client that closed the connection: nobody reads it but logs.
CLIENT_CLOSED = 499

_encode = msgspec.json.Encoder().encode
_log = logging.getLogger(__name__)


class Format(Protocol):
    """How one of OpenAI's endpoints writes an answer down. For one response."""

    is_stream: bool
    include_usage: bool

    def first(self, answer: Answer, choice: int) -> Json | None:
        """Return the chunk that opens a choice, if there is one."""
        ...

    def chunk(self, answer: Answer, choice: int, text: str, logprobs: list[TokenLogprob]) -> Json:
        """Return the chunk of some text."""
        ...

    def last(self, answer: Answer, choice: int, reason: str) -> Json:
        """Return the chunk that closes a choice."""
        ...

    def usage(self, answer: Answer) -> Json:
        """Return the chunk with the usage, which follows all choices."""
        ...

    def whole(self, answer: Answer, choices: list[Choice]) -> Json:
        """Return the response that is not streamed."""
        ...


class Choice:
    """One choice, gathered."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.reason = ""

    @property
    def text(self) -> str:
        """All of its text."""
        return "".join(self.texts)


class _Gone(Exception):
    """The HTTP client has closed its connection."""


async def respond(request: Request, answer: Answer, form: Format) -> Response:
    """Wait for an answer and return it; one that nobody waits for any more is cancelled."""
    is_handed_over = False
    try:
        await _unless_gone(request, answer.start())
        headers = {"x-request-id": answer.request_id}
        if form.is_stream:
            is_handed_over = True
            return _EventStream(answer, form, headers)
        choices = await _unless_gone(request, _gather(answer))
        content = _encode(form.whole(answer, choices))
        return Response(content, media_type="application/json", headers=headers)
    except _Gone:
        return Response(status_code=CLIENT_CLOSED)
    finally:
        if not is_handed_over:
            _close(answer)


class _EventStream(StreamingResponse):
    """Server-sent events; whatever ends the response ends the answer too."""

    def __init__(self, answer: Answer, form: Format, headers: dict[str, str]) -> None:
        self._answer = answer
        headers |= {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_events(answer, form), headers=headers, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            _close(self._answer)


def _close(answer: Answer) -> None:
    """Say how a response ended, and free what its answer still holds."""
    if answer.is_accepted:
        how = "answered" if answer.is_over else "the client left"
        _log.info("%s", how, extra={"request": answer.request_id})
    answer.cancel()


async def _events(answer: Answer, form: Format) -> AsyncIterator[bytes]:
    usage = {"usage": None} if form.include_usage else {}
    try:
        for choice in range(answer.choices):
            first = form.first(answer, choice)
            if first is not None:
                yield _event(first | usage)
        async for choice, event in answer.events():
            match event:
                case Text(_, text, logprobs):
                    yield _event(form.chunk(answer, choice, text, logprobs) | usage)
                case Finished(_, reason):
                    yield _event(form.last(answer, choice, reason) | usage)
        if form.include_usage:
            yield _event(form.usage(answer))
    except (Disconnected, Failed) as error:
        # The status has been sent: what went wrong is an event.
        yield _event(errors.of_exception(error)[1])
    yield b"data: [DONE]\n\n"


def _event(json: Json) -> bytes:
    return b"data: " + _encode(json) + b"\n\n"


async def _gather(answer: Answer) -> list[Choice]:
    choices = [Choice() for _ in range(answer.choices)]
    async for choice, event in answer.events():
        match event:
            case Text(_, text, logprobs):
                choices[choice].texts.append(text)
                choices[choice].logprobs += logprobs
            case Finished(_, reason):
                choices[choice].reason = reason
    return choices


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """Return what ``work`` does. Raises ``_Gone``, and ends it, if the client leaves."""
    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(_until_gone(request))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise _Gone
        return worker.result()
    finally:
        for task in (worker, watcher):
            task.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
