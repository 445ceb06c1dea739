"""The client for programs that wait: every call and every iteration blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import zmq

from weft.runtime.client.connection import Connection
from weft.runtime.client.events import (
    Adapter,
    Asker,
    Changed,
    Event,
    Model,
    Models,
    Report,
    first_text,
)
from weft.runtime.client.pending import Answer, Question, Request
from weft.runtime.client.session import ANSWER_TIMEOUT_S, unanswered

Self = TypeVar("Self", bound="Client")


class Client:
    """A connection to a running weft. For one thread; several requests may run at once."""

    def __init__(self, run_dir: Path | str | None = None, *, name: str = "client") -> None:
        """Connect to the run whose directory `weft serve` prints; None: to the newest.

        Raises ``NoRun``, or ``Disconnected`` if weft does not answer.
        """
        self._connection = Connection(run_dir, name)
        self._poller = zmq.Poller()
        for socket in self._connection.sockets:
            self._poller.register(socket, zmq.POLLIN)
        session = self._connection.session
        with ExitStack() as unless_open:
            unless_open.callback(self.close)
            self._wait(lambda: session.is_open or session.failure is not None)
            if session.failure is not None:
                raise session.failure
            unless_open.pop_all()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        where: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, model: str | None = None, **options: Any
    ) -> Iterator[str]:
        """Yield the answer's text as it comes. Raises ``Refused``, ``Disconnected``.

        ``messages`` hold a role and a content each. ``model`` names an adapter or the base (None).
        ``options`` are those of ``generate``, and the fields of Sampling in INGRESS.md, such as
        ``temperature``.
        """
        return self.generate(messages=messages, model=model, **options).text()

    def complete(
        self, prompt: str | Sequence[int], *, model: str | None = None, **options: Any
    ) -> Iterator[str]:
        """Yield what follows a prompt, which is text or token ids."""
        return self.generate(prompt=prompt, model=model, **options).text()

    def generate(  # noqa: PLR0913 - each by its name: what a request may say
        self,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        prompt: str | Sequence[int] | None = None,
        model: str | None = None,
        lora: Sequence[Mapping[str, Any]] | None = None,
        user: str | None = None,
        tenant: str | None = None,
        priority: int = 0,
        **sampling: Any,
    ) -> Stream:
        """Send a request, and return its events: ``Accepted``, ``Text`` and ``Finished``.

        ``lora`` are adapters whose updates are added up: ``[{"name": "sql", "scale": 0.7}, …]``.
        """
        request = self._connection.session.submit(
            _nothing, model=model, messages=messages, prompt=prompt, sampling=sampling,
            asker=Asker(user, tenant, priority), lora=lora,
        )  # fmt: skip
        self._connection.pump()
        return Stream(self, request)

    def models(self) -> list[Model]:
        """Return every name that ``model`` may take, the base first."""
        return self.served().models

    def served(self) -> Models:
        """Return the models, and whether anything keeps them from being computed now."""
        return self._ask(self._connection.session.list_models)

    def load_adapter(
        self,
        name: str,
        source: str,
        *,
        replace: bool = False,
        pinned: bool | None = None,
        digest: str | None = None,
    ) -> Changed:
        """Let a name mean the adapter of a folder, a hub id or a URL. Raises ``Refused``.

        ``digest`` is what its content must have.
        """
        return self._operate("LoadAdapter", name, source, replace, pinned, digest)

    def unload_adapter(self, name: str) -> Changed:
        """Forget a name, and wait until nothing is left of what only it meant."""
        return self._operate("UnloadAdapter", name)

    def pin_adapter(self, name: str, *, pinned: bool = True, on_device: bool = False) -> Changed:
        """Keep an adapter in host memory, and perhaps on the device; or no longer."""
        return self._operate("PinAdapter", name, pinned, on_device)

    def prefetch_adapter(self, name: str) -> Changed:
        """Have an adapter read into host memory."""
        return self._operate("PrefetchAdapter", name)

    def adapters(self, name: str | None = None) -> list[Adapter]:
        """Describe one adapter, or all."""
        return (self._operate("ListAdapters", name)).adapters

    def inspect(self) -> Report:
        """Have every process of weft check its invariants, and return their counters."""
        return self._ask(self._connection.session.inspect)

    def close(self) -> None:
        """Leave; whatever still runs for this client is cancelled."""
        self._connection.close()

    def _ask(self, ask: Callable[[Callable[[], None]], Question[Answer]]) -> Answer:
        question = ask(_nothing)
        self._connection.pump()
        self._wait(lambda: question.is_settled)
        return question.take()

    def _operate(self, name: str, *fields: str | bool | None) -> Changed:
        question = self._connection.session.operate(_nothing, name, *fields)
        self._connection.pump()
        self._wait(lambda: question.is_settled, is_prompt=False)
        return question.take()

    def _cancel(self, request: Request) -> None:
        self._connection.session.cancel(request)
        self._connection.pump()

    def _next(self, request: Request) -> Event | None:
        while not request.has_news:
            self._poller.poll()
            self._connection.pump()
        return request.take()

    def _wait(self, until: Callable[[], bool], *, is_prompt: bool = True) -> None:
        """Wait for what weft answers at once, or for what takes as long as it takes."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S if is_prompt else None
        while not until():
            if deadline is None:
                self._poller.poll()
            else:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise unanswered()
                self._poller.poll(int(left_s * 1000) + 1)
            self._connection.pump()


class Stream:
    """The events of one request. Leaving a ``with`` block early cancels it."""

    def __init__(self, client: Client, request: Request) -> None:
        self._client = client
        self._request = request

    def __iter__(self) -> Iterator[Event]:
        """Yield events until all choices have finished. Raises ``Refused``, ``Disconnected``."""
        while (event := self._client._next(self._request)) is not None:
            yield event

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        where: TracebackType | None,
    ) -> None:  # fmt: skip
        self.cancel()

    def text(self) -> Iterator[str]:
        """Yield the text of the first choice. Raises ``Failed`` if it ends in an error.

        A loop that is left before the end cancels the request.
        """
        try:
            for event in self:
                if text := first_text(event):
                    yield text
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Give up what has not finished; its choices finish with the reason "cancelled"."""
        self._client._cancel(self._request)


def _nothing() -> None:
    """Do nothing: whoever waits looks for itself."""
