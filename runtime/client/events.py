"""What a client hears of its requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Refused(Exception):
    """The request was not accepted, and nothing is held for it."""

    def __init__(
        self, code: str, message: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        """``param`` is the field at fault; ``retry_after_s`` is set if trying again may help."""
        super().__init__(message)
        self.code = code  # "model_not_found", "context_length_exceeded", "queue_full", …
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class Failed(Exception):
    """The request was accepted, but the model could not finish it."""


class Disconnected(ConnectionError):
    """weft has ended, or turned this client away."""


class Asker(NamedTuple):
    """On whose behalf a request is, as far as the client says."""

    user: str | None = None  # the end user
    tenant: str | None = None  # whose share and limits count; None: the user's, else the model's
    priority: int = 0  # among the tenant's requests; lower is earlier


class Accepted(NamedTuple):
    """The request will be answered."""

    request_id: str  # 32 hex digits, as in weft's logs
    prompt_tokens: int
    choices: int


class TokenLogprob(NamedTuple):
    """A token of the text, its log probability, and the most likely alternatives."""

    token: str
    token_bytes: bytes
    logprob: float
    top: list[tuple[str, bytes, float]]  # token, bytes, log probability; most likely first


class Text(NamedTuple):
    """More text of one choice: whole characters, maybe none."""

    choice: int  # from 0
    text: str
    logprobs: list[TokenLogprob]  # empty unless asked for


class Finished(NamedTuple):
    """A choice is over."""

    choice: int
    reason: str  # "stop", "length", "cancelled" or "error"
    output_tokens: int
    cached_tokens: int  # of the prompt, found in the prefix cache
    error: str | None  # what went wrong, for "error"
    # The steps of the engine that computed it: choices whose ranges overlap shared batches.
    first_step: int | None  # None: it never ran
    last_step: int | None


Event = Accepted | Text | Finished


def first_text(event: Event) -> str:
    """Return what an event adds to the text of the first choice.

    Raises ``Failed`` if that choice ends in an error.
    """
    match event:
        case Text(0, text):
            return text
        case Finished(0, "error", error=error):
            raise Failed(error)
    return ""


class Model(NamedTuple):
    """A name that requests may use."""

    name: str
    root: str  # where its weights came from
    parent: str | None  # the base's name; None for the base itself
    digest: str | None  # of an adapter's content
    rank: int | None
    created_s: int  # unix time at which it became known
    max_model_len: int
    # Of an adapter whose folder says how to talk to it: chat_template and system_prompt (bool:
    # whether it has its own), stop and added_tokens (how many), sampling (a dict).
    defaults: dict[str, Any] | None = None


class Models(NamedTuple):
    """Every name that requests may use, the base first."""

    models: list[Model]
    away: str | None = None  # why a request sent now would be taken but wait, if so
    degraded: str | None = None  # why there is less to compute with than usual, if so


class Adapter(NamedTuple):
    """What is true of one adapter."""

    name: str
    version: int  # greater whenever the name gets other content
    digest: str | None  # None: not read yet, or refused
    root: str  # where it came from
    rank: int | None
    size_bytes: int | None  # that it takes in host memory
    tier: str  # where it is nearest to being used: "device", "host" or "disk"
    pinned: bool
    requests: int  # queued or running with its content
    requests_total: int
    created_s: int  # unix time
    refused: str | None = None  # why it cannot be used, if so
    # Requests by where it lay when they came: on the device, in host memory, on disk.
    hits: Sequence[int] = ()
    queue_s_mean: float | None = None  # from acceptance to the first step
    pinned_on_device: bool = False  # it is to stay on the device as well
    defaults: dict[str, Any] | None = None  # as a Model's


class Changed(NamedTuple):
    """What came of an operation on adapters: its outcome, and what is true now."""

    # loaded, replaced, already_loaded, unloaded, pinned, unpinned, prefetched or listed
    outcome: str
    adapters: list[Adapter]  # that it was about: none after an unload


class Report(NamedTuple):
    """The counters of every process, after each has checked its invariants."""

    sections: dict[str, dict[str, float]]  # process -> counter -> value
    adapters: list[dict[str, Any]]  # one for the base and each adapter in use, see INGRESS.md
    tenants: list[dict[str, Any]] = []  # noqa: RUF012 - never changed
    loads: list[dict[str, Any]] = []  # noqa: RUF012 - of each process that loads adapters
