"""What every actor counts, gathered along the path of a request."""

from __future__ import annotations

from weft.runtime.messages.base import Message, Part

# Upper edges of the histograms in AdapterMetrics and TenantMetrics, in seconds.
METRIC_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

# Upper edges of the histograms in LoadMetrics, in seconds: a small adapter takes less than one
# millisecond, a large one from a slow disk a minute.
LOAD_BUCKETS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
)  # fmt: skip


class Inspect(Message, frozen=True):
    """Client to tokenizer: check every actor's invariants and report its counters.

    Travels tokenizer, adapters, scheduler, runner, scheduler, detokenizer, client; each appends.
    With several runners it comes back to the scheduler between them, and with several schedulers
    to the router.
    """

    label: str


class AdapterMetrics(Part, frozen=True):
    """What the scheduler counted for one adapter (digest), or for the base (None)."""

    digest: str | None
    names: list[str]
    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    queue_s: list[int]  # histogram: counts in METRIC_BUCKETS_S, and one more for the rest
    queue_s_sum: float
    first_token_s: list[int]
    first_token_s_sum: float
    resident: bool  # on the device now
    # Requests by where it lay when they came: on the device, in host memory, on disk.
    hits: list[int] = []
    running: int = 0  # requests now
    waiting: int = 0  # that have not begun


class TenantMetrics(Part, frozen=True):
    """What the scheduler counted for one tenant, or for all that it does not list (None)."""

    tenant: str | None
    requests: int
    rejected: int  # for a limit, or for a full queue
    prompt_tokens: int
    output_tokens: int
    queue_s: list[int]  # histogram as in AdapterMetrics
    queue_s_sum: float
    counter: float  # service divided by weight, by which turns are taken; 0 for None


class LoadMetrics(Part, frozen=True):
    """How long a process took to bring adapters to its memory."""

    process: str
    tier: str  # "host": read from disk and checked; "device": copied from host memory
    seconds: list[int]  # histogram: counts in LOAD_BUCKETS_S, and one more for the rest
    seconds_sum: float


class Inspection(Message, frozen=True):
    """From actor to actor: an ``Inspect`` on its way, with the sections gathered so far."""

    client: str
    label: str
    sections: dict[str, dict[str, float]]  # actor -> counter -> value
    adapters: list[AdapterMetrics] = []
    tenants: list[TenantMetrics] = []
    loads: list[LoadMetrics] = []


class Report(Message, frozen=True):
    """Detokenizer to client: the answer to ``Inspect``."""

    label: str
    sections: dict[str, dict[str, float]]
    adapters: list[AdapterMetrics]
    tenants: list[TenantMetrics] = []
    loads: list[LoadMetrics] = []
