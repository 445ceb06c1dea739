"""What weft says to one HTTP request: the choices of one prompt, or of several."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from weft.runtime.client import (
    Accepted,
    Asker,
    AsyncClient,
    AsyncStream,
    Event,
    Failed,
    Finished,
    Text,
)


class Prompt(NamedTuple):
    """What is to be answered: either of the two."""

    messages: list[dict[str, str]] | None = None
    prompt: str | list[int] | None = None


class Answer:
    """Requests to weft, one for each prompt, whose choices are numbered through.

    Call ``start`` first: until it returns, weft may still refuse.
    """

    def __init__(
        self,
        client: AsyncClient,
        prompts: Sequence[Prompt],
        *,
        model: str | None,
        lora: Sequence[Mapping[str, Any]] | None,
        asker: Asker,
        sampling: Mapping[str, Any],
    ) -> None:
        """Send everything."""
        self.created_s = int(time.time())
        self._per_prompt = max(1, int(sampling.get("n", 1)))
        self.choices = len(prompts) * self._per_prompt
        self._accepted: dict[int, Accepted] = {}  # by prompt
        self._finished: dict[int, Finished] = {}  # by choice
        self._early: list[tuple[int, Text | Finished]] = []  # heard by ``start``
        self._streams = [
            client.generate(
                messages=prompt.messages,
                prompt=prompt.prompt,
                model=model,
                lora=lora,
                **asker._asdict(),
                **sampling,
            )
            for prompt in prompts
        ]
        self._heard = self._events()

    async def start(self) -> None:
        """Wait until every prompt is accepted and something is there to send.

        Raises ``Refused``, ``Disconnected``, or ``Failed`` if generation fails at once.
        """
        async for choice, event in self._heard:
            if isinstance(event, Accepted):
                self._accepted[choice // self._per_prompt] = event
                continue
            self._note(choice, event)
            self._early.append((choice, event))
            if self.is_accepted:
                return

    async def events(self) -> AsyncIterator[tuple[int, Text | Finished]]:
        """Yield choice and event to the end. Raises as ``start`` does."""
        for early in self._early:
            yield early
        async for choice, event in self._heard:
            if not isinstance(event, Accepted):
                self._note(choice, event)
                yield choice, event

    def cancel(self) -> None:
        """Give up what has not finished. Does nothing after the end."""
        if not self.is_over:
            for stream in self._streams:
                stream.cancel()

    @property
    def is_accepted(self) -> bool:
        """Whether weft has accepted every prompt."""
        return len(self._accepted) == len(self._streams)

    @property
    def is_over(self) -> bool:
        """Whether every choice has finished."""
        return len(self._finished) == self.choices

    @property
    def request_id(self) -> str:
        """The id under which weft's logs tell this request's story; the first prompt's."""
        return self._accepted[0].request_id

    def usage(self) -> dict[str, Any]:
        """Return OpenAI's usage: a prompt counts once, whatever the number of its choices."""
        prompt_tokens = sum(accepted.prompt_tokens for accepted in self._accepted.values())
        output_tokens = sum(finished.output_tokens for finished in self._finished.values())
        cached_tokens = sum(
            finished.cached_tokens
            for choice, finished in self._finished.items()
            if choice % self._per_prompt == 0
        )
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": prompt_tokens + output_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        }

    def _note(self, choice: int, event: Text | Finished) -> None:
        if not isinstance(event, Finished):
            return
        self._finished[choice] = event
        if event.reason in ("error", "cancelled"):
            raise Failed(event.error or "the request was cancelled while weft was stopping")

    async def _events(self) -> AsyncGenerator[tuple[int, Event]]:
        if len(self._streams) == 1:
            async for event in self._streams[0]:
                yield _choice(event), event
            return
        async with aclosing(_merge(self._streams)) as merged:
            async for prompt, event in merged:
                yield prompt * self._per_prompt + _choice(event), event


def _choice(event: Event) -> int:
    return 0 if isinstance(event, Accepted) else event.choice


async def _merge(streams: Sequence[AsyncStream]) -> AsyncGenerator[tuple[int, Event]]:
    """Yield the events of all streams as they come, with the stream's index."""
    heard: asyncio.Queue[tuple[int, Event | Exception | None]] = asyncio.Queue()

    async def listen(index: int, stream: AsyncStream) -> None:
        try:
            async for event in stream:
                heard.put_nowait((index, event))
            heard.put_nowait((index, None))
        except Exception as error:  # noqa: BLE001 - raised again, in the task that reads
            heard.put_nowait((index, error))

    tasks = [asyncio.create_task(listen(index, stream)) for index, stream in enumerate(streams)]
    try:
        unfinished = len(tasks)
        while unfinished:
            index, event = await heard.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                unfinished -= 1
            else:
                yield index, event
    finally:
        for task in tasks:
            task.cancel()
