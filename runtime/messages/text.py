"""Scheduler to detokenizer to client: tokens, which become text; and back, where they end."""

from __future__ import annotations

from typing import Literal

from weft.runtime.messages.base import Message, Part, Sequence
from weft.runtime.messages.defaults import AddedToken
from weft.runtime.messages.steps import TokenLogprobs


class Begin(Message, frozen=True):
    """Scheduler to detokenizer: a request was accepted; its choices are consecutive sequences."""

    first_sequence: Sequence
    choices: int
    request_id: str
    client: str
    label: str
    model: str
    prompt_tokens: int
    stop: list[str]
    include_stop: bool
    skip_special_tokens: bool
    added_tokens: list[AddedToken] = []  # tokens of an adapter that the base's tokenizer has not


FinishReason = Literal["stop", "length", "cancelled", "error"]


class End(Part, frozen=True):
    """A sequence is over."""

    sequence: Sequence
    reason: FinishReason
    output_tokens: int
    cached_tokens: int  # of the prompt, found in the prefix cache
    error: str | None = None  # what went wrong, for reason "error"
    # The scheduler's steps that computed it: sequences whose ranges overlap shared batches. Those
    # of several schedulers never do; of one that has moved they are the last one's.
    first_step: int | None = None  # None: it never ran, there
    last_step: int | None = None


class Sampled(Message, frozen=True):
    """Scheduler to detokenizer: one step's new tokens, and the sequences that are over."""

    sequences: list[Sequence]
    tokens: list[int]
    ends: list[End] = []
    logprobs: list[TokenLogprobs] = []  # index: into sequences


class StopFound(Message, frozen=True):
    """Detokenizer to scheduler: a stop string ends the sequence at this many output tokens."""

    sequence: Sequence
    output_tokens: int


class ClientGone(Message, frozen=True):
    """Detokenizer to scheduler: nobody reads this client's text any more; cancel all of it."""

    client: str


class Accepted(Message, frozen=True):
    """Detokenizer to client: the request will be answered; choice i is first_sequence + i."""

    label: str
    request_id: str
    first_sequence: Sequence
    choices: int
    prompt_tokens: int


class TextLogprobs(Part, frozen=True):
    """One token's text and log probabilities, beside the most likely alternatives."""

    index: int  # into the message's sequences
    token: str
    token_bytes: bytes
    logprob: float
    top: list[tuple[str, bytes, float]]


class Text(Message, frozen=True):
    """Detokenizer to client: new text of the client's sequences, and those that are over.

    Whole characters only, and nothing that could still turn out to begin a stop string.
    """

    sequences: list[Sequence]
    texts: list[str]
    ends: list[End] = []
    logprobs: list[TextLogprobs] = []
