"""What the detokenizer is to hear from the scheduler."""

from __future__ import annotations

from collections import deque

from weft.runtime.actor import Send
from weft.runtime.messages import (
    Begin,
    End,
    Inspection,
    Mark,
    Message,
    Resume,
    Sampled,
    TokenLogprobs,
)
from weft.runtime.replicas import ALONE, Replica


class Outbox:
    """Messages in their order, and ends, which travel with the next tokens."""

    def __init__(self, replica: Replica = ALONE) -> None:
        self._round_goes_to = "detokenizer" if replica.is_last else replica.door
        self._messages: deque[Message] = deque()
        self._ends: list[End] = []

    @property
    def is_empty(self) -> bool:
        """Whether everything has been told."""
        return not (self._messages or self._ends)

    def begin(self, begin: Begin) -> None:
        """Tell that a request was accepted, as soon as there is room."""
        self._messages.append(begin)

    def move(self, message: Mark | Resume) -> None:
        """Tell of sequences that leave, or have come, behind all that was said of them here."""
        self._messages.append(message)

    def end(self, end: End) -> None:
        """Tell that a sequence is over, with the next tokens or as soon as there is room."""
        self._ends.append(end)

    def inspection(self, inspection: Inspection) -> None:
        """Pass an inspection on; the detokenizer then reports what is true after all ends.

        Of several schedulers the last one says it to the detokenizer, the others to the router.
        """
        if self._ends:
            self._messages.append(self._sampled([], [], []))
        self._messages.append(inspection)

    def step(
        self, sequences: list[int], tokens: list[int], logprobs: list[TokenLogprobs]
    ) -> list[Send]:
        """Return one step's tokens at once, unless something has to be told before them."""
        if not (sequences or self._ends):
            return []
        sampled = self._sampled(sequences, tokens, logprobs)
        if self._messages:
            self._messages.append(sampled)
            return []
        return [Send("detokenizer", sampled)]

    def flush(self, room: int) -> list[Send]:
        """Return what there is room for."""
        sends: list[Send] = []
        while self._messages and len(sends) < room:
            message = self._messages.popleft()
            is_inspection = isinstance(message, Inspection)
            sends.append(Send(self._round_goes_to if is_inspection else "detokenizer", message))
        if self._ends and len(sends) < room:
            sends.append(Send("detokenizer", self._sampled([], [], [])))
        return sends

    def _sampled(
        self, sequences: list[int], tokens: list[int], logprobs: list[TokenLogprobs]
    ) -> Sampled:
        ends, self._ends = self._ends, []
        return Sampled(sequences, tokens, ends, logprobs)
