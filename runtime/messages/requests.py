"""Client and tokenizer: requests for text, and what is said of them at once."""

from __future__ import annotations

import msgspec

from weft.runtime.messages.base import Message, Part
from weft.runtime.messages.defaults import DefaultsSummary

# Priorities lie within this of 0, the default. vLLM's range is open; here the least urgent request
# waits for a bounded time only.
PRIORITY_MAX = 100

# What an adapter's update may be multiplied by, both ways. Far beyond any use, and far from where
# the sums of the device overflow.
LORA_SCALE_MAX = 1000.0


class Sampling(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True
):
    """How tokens are drawn and when they end. A map on the wire: send only what differs.

    None means the adapter's own default, else the model's (generation_config.json), else the
    neutral value. An adapter's own stop strings come beside the request's.
    """

    max_tokens: int | None = None  # neutral: as many as the context has room for
    min_tokens: int = 0  # no end-of-sequence token before this many
    temperature: float | None = None  # 0: greedy
    top_p: float | None = None
    top_k: int | None = None  # 0 or -1: all tokens
    min_p: float | None = None
    seed: int | None = None  # None: the tokenizer draws one
    n: int = 1
    stop: list[str] = []
    stop_token_ids: list[int] = []
    include_stop: bool = False  # whether a stop string that was found is part of the text
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None  # the chosen token's, and those of this many most likely ones
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] = {}


class ChatMessage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True
):
    """One turn of a conversation. A map on the wire, as chat templates expect it."""

    role: str
    content: str | None = None
    name: str | None = None


class Lora(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True
):
    """One of the adapters that a request composes. A map on the wire."""

    name: str
    scale: float = 1.0  # by which its update is multiplied; 0 leaves it out


class Submit(Message, frozen=True):
    """Client to tokenizer: answer this. Exactly one of ``messages`` and ``prompt`` is set.

    Answered by ``Refused`` from the tokenizer, or by ``Accepted`` from the detokenizer.
    """

    label: str  # the client's own name for the request; unique among its live ones
    # An adapter's name, the base's name, or None for the base; or adapters as "sql+formal:0.5".
    model: str | None = None
    messages: list[ChatMessage] | None = None
    prompt: str | list[int] | None = None
    sampling: Sampling = Sampling()
    user: str | None = None
    tenant: str | None = None  # whose share it is; None: the user's, else the adapter's own
    priority: int = 0  # among the tenant's requests; lower is earlier
    lora: list[Lora] | None = None  # adapters whose updates are added up, instead of ``model``


class Cancel(Message, frozen=True):
    """Client to tokenizer: forget the request. Safe to send twice, or after its end."""

    label: str


class ListModels(Message, frozen=True):
    """Client to tokenizer: which names may ``model`` take? Answered by ``Models``."""

    label: str


class Refused(Message, frozen=True):
    """Tokenizer to client: the request was not accepted; nothing is held for it."""

    label: str
    code: str  # e.g. "model_not_found", "context_length_exceeded", "queue_full", "draining"
    message: str  # what is wrong and what to do
    param: str | None = None  # the field at fault
    retry_after_s: float | None = None  # set when the same request may succeed later


class ModelEntry(Part, frozen=True):
    """A name that ``model`` may take."""

    name: str
    root: str  # where its weights came from
    parent: str | None  # the base's name; None for the base itself
    digest: str | None  # an adapter's content digest
    rank: int | None
    created_s: int  # unix time at which it became known
    max_model_len: int
    defaults: DefaultsSummary | None = None  # of an adapter that has some


class Models(Message, frozen=True):
    """Tokenizer to client: every name, the base first."""

    label: str
    models: list[ModelEntry]
    away: str | None = None  # why a request sent now would be taken but wait, if so
    degraded: str | None = None  # why there is less to compute with than usual, if so
