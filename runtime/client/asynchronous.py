"""The client for asyncio. One connection serves any number of tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq

from weft.runtime.client.connection import CLOSED, Connection
from weft.runtime.client.events import (
    Adapter,
    Asker,
    Changed,
    Disconnected,
    Event,
    Model,
    Models,
    Report,
    first_text,
)
from weft.runtime.client.pending import Answer, Question, Request
from weft.runtime.client.session import ANSWER_TIMEOUT_S, unanswered


class AsyncClient:
    """A connection to a running weft, for one event loop. Made by ``connect``."""

    def __init__(self, connection: Connection) -> None:
        """Watch a connection's sockets. Call ``connect`` instead."""
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()  # set after each round of frames, for what waits to open
        self._is_pump_due = False
        self._fds = [int(socket.getsockopt(zmq.FD)) for socket in connection.sockets]
        for fd in self._fds:
            self._loop.add_reader(fd, self._pump)
        self._pump()

    @staticmethod
    async def connect(run_dir: Path | str | None = None, *, name: str = "client") -> AsyncClient:
        """Connect to the run whose directory `weft serve` prints; None: to the newest.

        Raises ``NoRun``, or ``Disconnected`` if weft does not answer.
        """
        client = AsyncClient(Connection(run_dir, name))
        with ExitStack() as unless_open:
            unless_open.callback(client.close)
            async with _answer_due():
                while client.failure is None and not client._connection.session.is_open:
                    client._changed.clear()
                    await client._changed.wait()
            if client.failure is not None:
                raise client.failure
            unless_open.pop_all()
        return client

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        where: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    @property
    def failure(self) -> Disconnected | None:
        """Why nothing can be asked any more, if so."""
        return self._connection.session.failure

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, model: str | None = None, **options: Any
    ) -> AsyncIterator[str]:
        """Yield the answer's text as it comes; see ``Client.chat``."""
        return self.generate(messages=messages, model=model, **options).text()

    def complete(
        self, prompt: str | Sequence[int], *, model: str | None = None, **options: Any
    ) -> AsyncIterator[str]:
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
    ) -> AsyncStream:
        """Send a request, and return its events: ``Accepted``, ``Text`` and ``Finished``.

        ``lora`` are adapters whose updates are added up: ``[{"name": "sql", "scale": 0.7}, …]``.
        """
        news = asyncio.Event()
        request = self._connection.session.submit(
            news.set, model=model, messages=messages, prompt=prompt, sampling=sampling,
            asker=Asker(user, tenant, priority), lora=lora,
        )  # fmt: skip
        self._pump_soon()
        return AsyncStream(self, request, news)

    async def models(self) -> list[Model]:
        """Return every name that ``model`` may take, the base first."""
        return (await self.served()).models

    async def served(self) -> Models:
        """Return the models, and whether anything keeps them from being computed now."""
        return await self._ask(self._connection.session.list_models)

    async def load_adapter(
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
        return await self._operate("LoadAdapter", name, source, replace, pinned, digest)

    async def unload_adapter(self, name: str) -> Changed:
        """Forget a name, and wait until nothing is left of what only it meant."""
        return await self._operate("UnloadAdapter", name)

    async def pin_adapter(
        self, name: str, *, pinned: bool = True, on_device: bool = False
    ) -> Changed:
        """Keep an adapter in host memory, and perhaps on the device; or no longer."""
        return await self._operate("PinAdapter", name, pinned, on_device)

    async def prefetch_adapter(self, name: str) -> Changed:
        """Have an adapter read into host memory."""
        return await self._operate("PrefetchAdapter", name)

    async def adapters(self, name: str | None = None) -> list[Adapter]:
        """Describe one adapter, or all."""
        return (await self._operate("ListAdapters", name)).adapters

    async def inspect(self) -> Report:
        """Have every process of weft check its invariants, and return their counters."""
        return await self._ask(self._connection.session.inspect)

    def close(self, why: str = CLOSED) -> None:
        """Leave; whatever still runs for this client is cancelled, and fails with ``why``.

        Does nothing the second time.
        """
        if not self._fds:
            return
        for fd in self._fds:
            self._loop.remove_reader(fd)
        self._fds = []
        self._connection.close(why)

    async def _ask(self, ask: Callable[[Callable[[], None]], Question[Answer]]) -> Answer:
        settled = asyncio.Event()
        question = ask(settled.set)
        self._pump_soon()
        async with _answer_due():
            await settled.wait()
        return question.take()

    async def _operate(self, name: str, *fields: str | bool | None) -> Changed:
        """Wait as long as it takes: an unload waits for the last request."""
        settled = asyncio.Event()
        question = self._connection.session.operate(settled.set, name, *fields)
        self._pump_soon()
        await settled.wait()
        return question.take()

    def _cancel(self, request: Request) -> None:
        self._connection.session.cancel(request)
        self._pump_soon()

    def _pump_soon(self) -> None:
        """Pump once, after everything that is to be sent in this turn of the event loop."""
        if self._fds and not self._is_pump_due:
            self._is_pump_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._is_pump_due = False
        # A socket's descriptor tells only of changes: what one pump made possible must be done.
        while self._fds and self._connection.pump():
            pass
        self._changed.set()


class AsyncStream:
    """The events of one request. Leaving an ``async with`` block early cancels it."""

    def __init__(self, client: AsyncClient, request: Request, news: asyncio.Event) -> None:
        self._client = client
        self._request = request
        self._news = news

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield events until all choices have finished. Raises ``Refused``, ``Disconnected``."""
        while True:
            while not self._request.has_news:
                self._news.clear()
                await self._news.wait()
            event = self._request.take()
            if event is None:
                return
            yield event

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        where: TracebackType | None,
    ) -> None:  # fmt: skip
        self.cancel()

    async def text(self) -> AsyncIterator[str]:
        """Yield the text of the first choice. Raises ``Failed`` if it ends in an error.

        Close it (``aclosing``), or use ``async with`` on the stream, to leave before the end.
        """
        try:
            async for event in self:
                if text := first_text(event):
                    yield text
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Give up what has not finished; its choices finish with the reason "cancelled"."""
        self._client._cancel(self._request)


@asynccontextmanager
async def _answer_due() -> AsyncIterator[None]:
    """Raise ``Disconnected`` if what is within waits for too long."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            yield
    except TimeoutError:
        raise unanswered() from None
