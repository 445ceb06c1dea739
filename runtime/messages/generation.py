"""Tokenizer and schedulers, or the router between them: requests that are ready to be scheduled."""

from __future__ import annotations

from weft.runtime.messages.base import Message, Part
from weft.runtime.messages.defaults import AddedToken
from weft.runtime.messages.requests import PRIORITY_MAX, Refused


class RowSampling(Part, frozen=True):
    """Sampling with every default filled in: what a runner needs for one row."""

    temperature: float
    top_p: float
    top_k: int  # 0: all
    min_p: float
    seed: int  # 0 .. 2**63 - 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
    # Banned while fewer than min_tokens have been drawn.
    min_tokens: int = 0
    min_tokens_banned: list[int] = []

    @property
    def needs_history(self) -> bool:
        """Whether a row's logits depend on the tokens before it."""
        return bool(
            self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0
        )


class AdapterUse(Part, frozen=True):
    """An adapter whose update, multiplied by ``scale``, is added to what the base computes."""

    digest: str
    scale: float
    name: str  # as the client named it


class Generate(Message, frozen=True):
    """Tokenizer to scheduler: a request that is ready to be scheduled."""

    request_id: str  # 32 hex digits
    client: str  # the peer that gets the text
    label: str
    model: str  # as the client named it
    prompt: list[int]  # token ids, never empty
    adapters: list[AdapterUse]  # by digest, ascending; none: the base
    salt: str  # prefix-cache name space
    max_tokens: int
    choices: int
    stop_token_ids: list[int]  # end the sequence; end-of-sequence tokens included, unless ignored
    sampling: RowSampling
    stop: list[str] = []
    include_stop: bool = False
    skip_special_tokens: bool = True
    tenant: str = ""  # whose share it is
    priority: int = 0  # lower is earlier
    lora_start: int = 0  # the prompt's tokens before it are the base's
    added_tokens: list[AddedToken] = []  # the adapter's, for the detokenizer

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("prompt is empty")
        digests = [use.digest for use in self.adapters]
        if digests != sorted(set(digests)):
            raise ValueError(f"adapters are {digests}, not ascending")
        if not 0 <= self.lora_start < len(self.prompt) or (self.lora_start and not digests):
            raise ValueError(f"lora_start is {self.lora_start} of {len(self.prompt)} tokens")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}, not positive")
        if self.choices < 1:
            raise ValueError(f"choices is {self.choices}, not positive")
        if abs(self.priority) > PRIORITY_MAX:
            raise ValueError(f"priority is {self.priority}, beyond {PRIORITY_MAX}")


class Abort(Message, frozen=True):
    """Tokenizer to scheduler: a client cancelled a request. Unknown labels are ignored."""

    client: str
    label: str


class Reject(Message, frozen=True):
    """Scheduler to tokenizer: no room for the request; tell the client.

    Or, of several schedulers, to router: which asks another one first, if the queue is full.
    """

    client: str
    refused: Refused
    request_id: str


class Away(Message, frozen=True):
    """Scheduler to tokenizer: why what it is sent waits; None: nothing keeps it from running.

    Of several schedulers, to router: which has the others go on with its requests, and tells the
    tokenizer whether any is left.
    """

    reason: str | None
    degraded: str | None = None  # why there is less to compute with than usual, though there is


class Progress(Message, frozen=True):
    """Scheduler to router: what has become of its requests, and which adapters came and went."""

    accepted: list[str] = []  # request ids
    ended: list[str] = []  # request ids, one for each choice that is over
    metered: list[str] = []  # request ids, one for each token of an answer that a limit counts
    loaded: list[str] = []  # digests
    evicted: list[str] = []
