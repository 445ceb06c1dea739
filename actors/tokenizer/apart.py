"""Requests whose chats are rendered in another process, by the templates of adapters."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from weft.actors.tokenizer.chat import refused_by_template
from weft.actors.tokenizer.refusal import Refusal
from weft.actors.tokenizer.rendering import Job, Renderer, Text, Unrendered
from weft.runtime.messages import AdapterEntry, Submit


class Asked(NamedTuple):
    """A request, and who waits for its answer."""

    client: str
    submit: Submit


class Prepared(NamedTuple):
    """A request whose chat has been rendered, or not, as its model's name meant ``entry``."""

    asked: Asked
    entry: AdapterEntry
    result: Text | Unrendered

    def text(self) -> str:
        """Return what the template made of the chat. Raises ``Refusal``."""
        if isinstance(self.result, Text):
            return self.result.text
        if self.result.is_broken:
            raise Refusal(
                "adapter_refused",
                f"the adapter {self.entry.name!r} cannot be used for chats: its chat template: "
                f"{self.result.reason}",
                "model",
            )
        raise refused_by_template(self.result.reason)


class Apart:
    """Owns them from the moment they are given away until they are taken back, in any order."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._rendering: dict[int, tuple[Asked, AdapterEntry]] = {}  # by ticket
        self._prepared: deque[Prepared] = deque()

    def __len__(self) -> int:
        return len(self._rendering) + len(self._prepared)

    def begin(self, asked: Asked, entry: AdapterEntry, job: Job) -> None:
        """Have a chat rendered."""
        self._rendering[self._renderer.start(job)] = asked, entry

    def take(self) -> Prepared | None:
        """Return a request that has been rendered, if there is one."""
        for ticket, result in self._renderer.finished():
            self._prepared.append(Prepared(*self._rendering.pop(ticket), result))
        return self._prepared.popleft() if self._prepared else None

    def cancel(self, client: str, label: str | None = None) -> bool:
        """Forget a client's request of a label, or all; return whether there was any."""
        before = len(self)

        def is_meant(asked: Asked) -> bool:
            return asked.client == client and label in (None, asked.submit.label)

        for ticket in [t for t, (asked, _) in self._rendering.items() if is_meant(asked)]:
            del self._rendering[ticket]
            self._renderer.forget(ticket)
        self._prepared = deque(p for p in self._prepared if not is_meant(p.asked))
        return len(self) < before
