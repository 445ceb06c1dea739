"""Every message that crosses a process boundary, in the order in which a request meets them.

    client --Submit--> tokenizer --Generate--> scheduler --Step--> runner
    client <--Text-- detokenizer <--Sampled-- scheduler <--StepDone-- runner
    tokenizer <--Catalog-- adapters --Acquired--> scheduler

A sequence is one choice of one request (``n`` of them share a prompt). The scheduler numbers
sequences from 1; inside, messages name sequences and never repeat a request's strings.
"""

from __future__ import annotations

from typing import Literal

import msgspec

# Priorities lie within this of 0, the default. vLLM's range is open; here the least urgent request
# waits for a bounded time only.
PRIORITY_MAX = 100

# What an adapter's update may be multiplied by, both ways. Far beyond any use, and far from where
# the sums of the device overflow.
LORA_SCALE_MAX = 1000.0

# Token ids, rows, pages and slots: all below 2**31, because devices index with int32. A sequence's
# number goes to no device: below 2**53, as every client's language has it.
Sequence = int


class Message(
    msgspec.Struct, frozen=True, tag=True, array_like=True, forbid_unknown_fields=True, gc=False
):
    """Base of all messages: immutable, typed, and known by its class name on the wire.

    Subclasses repeat ``frozen=True``: msgspec inherits it, type checkers do not.
    """


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of the values inside messages: an array on the wire, without a name."""


# ---- client to tokenizer ------------------------------------------------------------------------


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


class SamplingDefaults(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True
):
    """What an adapter's requests get that do not say otherwise. A map on the wire.

    The fields mean what they do in ``Sampling``; None means that the adapter does not say.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None


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


class Inspect(Message, frozen=True):
    """Client to tokenizer: check every actor's invariants and report its counters.

    Travels tokenizer, adapters, scheduler, runner, scheduler, detokenizer, client; each appends.
    With several runners it comes back to the scheduler between them, and with several schedulers
    to the router.
    """

    label: str


class LoadAdapter(Message, frozen=True):
    """Client to tokenizer: let ``name`` mean the adapter at ``source``, once it has been checked.

    Answered, as the four below, by ``AdapterAnswer`` or ``Refused``: loaded, replaced, or
    already_loaded if the name means this very content. Without ``replace`` a name that means other
    content is refused. Requests that were accepted before finish with what the name meant then.
    """

    label: str
    name: str
    source: str  # a PEFT folder, inside the allowed roots; or org/name of the hub, or a URL
    replace: bool = False
    pinned: bool | None = None  # None: as it was, at first not
    digest: str | None = None  # that the content must have, as AdapterState has it


class UnloadAdapter(Message, frozen=True):
    """Client to tokenizer: forget a name, at once for new requests.

    Answered once the last request has ended that still used the content, and nothing of it is left
    on the device and in host memory; or at once, if another name means the same.
    """

    label: str
    name: str


class PinAdapter(Message, frozen=True):
    """Client to tokenizer: keep an adapter in host memory whatever comes, or no longer.

    With ``on_device`` it is brought to the device as well and stays there, beside what runs.
    """

    label: str
    name: str
    pinned: bool
    on_device: bool = False


class PrefetchAdapter(Message, frozen=True):
    """Client to tokenizer: read an adapter into host memory, where it stays while there is room."""

    label: str
    name: str


class ListAdapters(Message, frozen=True):
    """Client to tokenizer: describe one adapter, or all that have a name."""

    label: str
    name: str | None = None


AdapterOperation = LoadAdapter | UnloadAdapter | PinAdapter | PrefetchAdapter | ListAdapters


# ---- tokenizer to client ------------------------------------------------------------------------


class Refused(Message, frozen=True):
    """Tokenizer to client: the request was not accepted; nothing is held for it."""

    label: str
    code: str  # e.g. "model_not_found", "context_length_exceeded", "queue_full", "draining"
    message: str  # what is wrong and what to do
    param: str | None = None  # the field at fault
    retry_after_s: float | None = None  # set when the same request may succeed later


class DefaultsSummary(Part, frozen=True):
    """What an adapter's folder says about how to talk to it, in short."""

    chat_template: bool  # whether it has one of its own
    system_prompt: bool  # likewise
    stop: int  # strings that end an answer
    added_tokens: int  # beyond the base's
    sampling: SamplingDefaults


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


class AdapterState(Part, frozen=True):
    """What is true of one adapter."""

    name: str
    version: int  # greater whenever a name gets other content; unlike any other name's
    digest: str | None  # None: not read yet, or refused
    root: str
    rank: int | None
    size_bytes: int | None  # that it takes in host memory; None: not known yet
    tier: str  # where it is nearest to being used: "device", "host" or "disk"
    pinned: bool
    requests: int  # that are queued or running with its content
    requests_total: int  # with its content, since it was first used
    created_s: int
    refused: str | None = None  # why it cannot be used, if so
    # Requests by where it lay when they came: on the device, in host memory, on disk.
    hits: list[int] = []
    queue_s_mean: float | None = None  # from acceptance to the first step; None: nothing ran yet
    pinned_on_device: bool = False  # it is to stay on the device as well
    defaults: DefaultsSummary | None = None


class AdapterAnswer(Message, frozen=True):
    """Tokenizer to client: an operation on adapters is done.

    ``outcome`` is loaded, replaced, already_loaded, unloaded, pinned, unpinned, prefetched or
    listed; ``adapters`` are those it was about, as they are now: none after an unload.
    """

    label: str
    outcome: str
    adapters: list[AdapterState]


# ---- adapters to tokenizer ----------------------------------------------------------------------


class AddedToken(Part, frozen=True):
    """A token that a tokenizer looks for in text before anything else (Hugging Face's AddedToken).

    ``special``: it controls, and is no text. ``single_word``: not inside of a word. ``lstrip`` and
    ``rstrip``: it takes the spaces beside it. ``normalized``: it is looked for in normalized text.
    """

    id: int
    content: str
    special: bool = False
    normalized: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


class AdapterDefaults(Part, frozen=True):
    """What an adapter's folder says about how to talk to it.

    It belongs to the name, not to the content, which may have several. None, and what is empty,
    stands for the base's.
    """

    chat_template: str | None = None  # Jinja
    system_prompt: str | None = None  # of conversations without one
    stop: list[str] = []
    sampling: SamplingDefaults = SamplingDefaults()
    eos_token_ids: list[int] | None = None  # instead of those that the base's files name
    special_tokens: dict[str, str] = {}  # such as eos_token, where they are not the base's
    added_tokens: list[AddedToken] = []  # those that the base's tokenizer has not, or has otherwise

    @property
    def summary(self) -> DefaultsSummary:
        """What clients are shown of it."""
        return DefaultsSummary(
            chat_template=self.chat_template is not None,
            system_prompt=self.system_prompt is not None,
            stop=len(self.stop),
            added_tokens=len(self.added_tokens),
            sampling=self.sampling,
        )


class AdapterEntry(Part, frozen=True):
    """An adapter that the store knows. ``refused`` says why it cannot be used, if so."""

    name: str
    root: str
    digest: str  # sha256 of configuration and weights, hex; "" when refused, or not read yet
    rank: int  # the largest of its modules'
    created_s: int
    refused: str | None = None
    version: int = 0
    tokens_added: int = 0  # ids beyond the base's vocabulary that are the adapter's own
    is_additive: bool = True  # it is updates alone: they may be multiplied, and added to others
    # It begins to act where a prompt has these last; none: at the start.
    invocation_tokens: list[int] = []
    defaults: AdapterDefaults | None = None

    @property
    def is_unread(self) -> bool:
        """Whether nobody has asked for it yet: ``Discover`` has it read."""
        return not self.digest and self.refused is None


class Catalog(Message, frozen=True):
    """Adapters to tokenizer: what has changed since the catalog before; at first, everything.

    The tokenizer resolves names by it from then on, and says so with ``CatalogSeen``.
    """

    adapters: list[AdapterEntry]
    removed: list[str] = []  # names that mean nothing any more
    version: int = 1
    is_last: bool = True  # whether there is nothing newer: what has changed may take several


# ---- tokenizer to adapters ----------------------------------------------------------------------


class AdapterRequest(Message, frozen=True):
    """Tokenizer to adapters: a client wants this. Answered by ``AdapterReply``."""

    client: str
    operation: AdapterOperation


class Discover(Message, frozen=True):
    """Tokenizer to adapters: read an adapter whose entry is unread; the catalog then says more."""

    name: str


# ---- tokenizer to scheduler ---------------------------------------------------------------------


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


class CatalogSeen(Message, frozen=True):
    """Tokenizer to scheduler to adapters: names were resolved by this catalog from here on.

    Links keep their order. So when the store hears it, the scheduler holds every request that was
    resolved by an older catalog: no digest that has no name in this one comes up again. The router
    passes it to the first of several schedulers once each of those requests has been accepted.
    """

    version: int


class Abort(Message, frozen=True):
    """Tokenizer to scheduler: a client cancelled a request. Unknown labels are ignored."""

    client: str
    label: str


class Inspection(Message, frozen=True):
    """From actor to actor: an ``Inspect`` on its way, with the sections gathered so far."""

    client: str
    label: str
    sections: dict[str, dict[str, float]]  # actor -> counter -> value
    adapters: list[AdapterMetrics] = []
    tenants: list[TenantMetrics] = []
    loads: list[LoadMetrics] = []


# ---- scheduler to tokenizer ---------------------------------------------------------------------


class Reject(Message, frozen=True):
    """Scheduler to tokenizer: no room for the request; tell the client.

    Or, of several schedulers, to router: which asks another one first, if the queue is full.
    """

    client: str
    refused: Refused
    request_id: str


class Progress(Message, frozen=True):
    """Scheduler to router: what has become of its requests, and which adapters came and went."""

    accepted: list[str] = []  # request ids
    ended: list[str] = []  # request ids, one for each choice that is over
    metered: list[str] = []  # request ids, one for each token of an answer that a limit counts
    loaded: list[str] = []  # digests
    evicted: list[str] = []


class Away(Message, frozen=True):
    """Scheduler to tokenizer: why what it is sent waits; None: nothing keeps it from running.

    Of several schedulers, to router: which has the others go on with its requests, and tells the
    tokenizer whether any is left.
    """

    reason: str | None
    degraded: str | None = None  # why there is less to compute with than usual, though there is


# ---- from one of several schedulers to another, by the router -----------------------------------


class Yield(Message, frozen=True):
    """Router to scheduler: hand these over, the oldest first; answered by ``Yielded``.

    Those that have not begun, and without runners all but suspects. Others stay.
    """

    request_ids: list[str]


class HandedChoice(Part, frozen=True):
    """A choice that is not over, as far as its client may have been told of it."""

    sequence: Sequence  # the number that it keeps
    choice: int
    output: list[int]  # tokens after the prompt
    cached_tokens: int | None  # of the prompt, when it first ran; None: it never did
    trusted_at: int | None = None  # tokens that it must know to be out of doubt; None: it is


class HandOver(Message, frozen=True):
    """Scheduler to router to scheduler: go on with this request, behind all that was said of it.

    The detokenizer has heard every token of it; so nobody else knows more of it than this. It is
    taken whatever the queue holds, and answered by ``Progress``, as having been accepted. Times are
    the machine's monotonic clock.
    """

    generate: Generate
    choices: list[HandedChoice]  # that are not over
    accepted_ns: int
    admitted_ns: int | None  # None: nothing of it ever ran
    first_token_ns: int | None
    # Where its farthest adapter lay when it came; None: it has none.
    tier: Literal["device", "host", "disk"] | None
    deaths_alone: int = 0  # of runners that computed nothing else


class Yielded(Message, frozen=True):
    """Scheduler to router: what a ``Yield`` named has been handed over, or stays."""


class Settled(Message, frozen=True):
    """Router to scheduler: requests that it has handed over are over.

    Until then their labels are in use, and their adapters are not ``Retired``.
    """

    request_ids: list[str]


class AdapterReply(Message, frozen=True):
    """Adapters to scheduler to tokenizer: the answer for a client.

    A scheduler fills in what it alone knows of each adapter: device and requests. Of several, one
    after the other does, each of which gives it back to the router; the numbers are sums.
    """

    client: str
    answer: AdapterAnswer | Refused


# ---- scheduler and adapters ---------------------------------------------------------------------


class Acquire(Message, frozen=True):
    """Scheduler to adapters: pin this adapter's weights in host memory."""

    digest: str


class Acquired(Message, frozen=True):
    """Adapters to scheduler: the weights lie at ``path`` until released."""

    digest: str
    path: str  # a safetensors file in the run directory, named by digest
    rank: int
    size_bytes: int
    granules: int  # in the layer that has most, of one tensor-parallel rank's share
    was_read: bool = False  # it was not in host memory when it was asked for


class AcquireFailed(Message, frozen=True):
    """Adapters to scheduler: the weights can no longer be had."""

    digest: str
    reason: str


class Release(Message, frozen=True):
    """Scheduler to adapters: unpin. One for each ``Acquired``."""

    digest: str


class DeviceRoom(Message, frozen=True):
    """Scheduler to adapters: what adapters may take on the device that nobody uses now.

    The rest is left to what runs, so that a batch always finds slots, and half of the pages.
    """

    adapters_max: int
    pages_max: int
    page_granules: int  # granules of adapter weights that one layer's page holds


class KeepOnDevice(Message, frozen=True):
    """Adapters to scheduler: these are to stay on the device, and no others.

    Together they are within every ``DeviceRoom``.
    """

    digests: list[str]


class Retire(Message, frozen=True):
    """Adapters to scheduler: no name means this content any more, and no new request will.

    Once the last request with it has ended, free its slot, its pages and the KV computed with it.
    """

    digest: str
    version: int  # of the catalog that did without it


class Retired(Message, frozen=True):
    """Scheduler to adapters: nothing here depends on this content any more."""

    digest: str
    version: int  # of the last ``Retire`` of this content


# ---- scheduler to runner ------------------------------------------------------------------------


class AdapterLoad(Part, frozen=True):
    """Put the adapter at ``path`` into ``pages``, and let rows find it by ``slot``.

    A slot is an entry of a table, not memory: what it named before is forgotten. Granule g of a
    layer lies in that layer's page ``pages[g // page_granules]``.
    """

    slot: int
    digest: str
    path: str
    pages: list[int]  # the same in every layer


class Join(Part, frozen=True):
    """A sequence takes a free row. Its tokens follow as chunks."""

    row: int
    # Slots and what their updates are multiplied by, in the order in which they are added up.
    adapters: list[tuple[int, float]]
    position: int  # tokens whose KV the pages already hold
    pages: list[int]
    sampling: RowSampling
    choice: int
    prompt_tokens: int  # positions from here on are output: penalties and noise count from it
    history: list[int] | None  # all tokens so far, when sampling needs them
    lora_start: int = 0  # positions before it are the base's


class Chunk(Part, frozen=True):
    """Feed tokens to a row from ``position`` on; the last chunk samples, then the row decodes."""

    row: int
    position: int
    tokens: list[int]
    is_last: bool


class Step(Message, frozen=True):
    """Scheduler to every runner of a group: what changes, then compute.

    Applied in field order: loads, leaves, joins, pages, chunks. Every row that has sampled and
    has not left also decodes: it feeds its own last token at its own next position. So a steady
    decode step carries nothing but its number.
    """

    step: int
    loads: list[AdapterLoad] = []
    leaves: list[int] = []  # rows
    joins: list[Join] = []
    page_rows: list[int] = []  # page_rows[i] gets page_ids[i] appended to its page table
    page_ids: list[int] = []
    chunks: list[Chunk] = []


# ---- runner to scheduler ------------------------------------------------------------------------


class RunnerReady(Message, frozen=True):
    """Runner to scheduler: weights are loaded; rows and slots are empty.

    Ranks of one life of their group have the same ``epoch``: no others compute together.
    """

    rank: int
    pages: int  # that the device holds, of every layer; for KV and for adapters
    page_tokens: int  # whose KV of one layer fills a page
    adapter_slots: int  # entries of the table of adapters
    page_granules: int  # granules of adapter weights that one layer's page holds
    epoch: int = 1  # of the runner


class TokenLogprobs(Part, frozen=True):
    """Log probabilities of one sampled token, after temperature and penalties are left out."""

    index: int  # into the step's sampled rows
    chosen: float
    top_tokens: list[int]  # most likely first
    top: list[float]


class StepDone(Message, frozen=True):
    """Runner rank 0 to scheduler: one token for each row that sampled, in ascending row order."""

    step: int
    tokens: list[int]
    failed: list[int] = []  # indices whose logits were not finite; their tokens mean nothing
    logprobs: list[TokenLogprobs] = []
    compute_us: int = 0


# ---- scheduler to detokenizer -------------------------------------------------------------------


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
    # of several schedulers never do.
    first_step: int | None = None  # None: it never ran
    last_step: int | None = None


class Sampled(Message, frozen=True):
    """Scheduler to detokenizer: one step's new tokens, and the sequences that are over."""

    sequences: list[Sequence]
    tokens: list[int]
    ends: list[End] = []
    logprobs: list[TokenLogprobs] = []  # index: into sequences


class Mark(Message, frozen=True):
    """Scheduler to detokenizer: say ``Marked`` once everything before this has been heard."""

    number: int


class Resume(Message, frozen=True):
    """Scheduler to detokenizer: these sequences, of another scheduler until now, go on here."""

    sequences: list[Sequence]


# ---- detokenizer to scheduler -------------------------------------------------------------------


class Marked(Message, frozen=True):
    """Detokenizer to scheduler: what came before this ``Mark`` was heard, and answered."""

    number: int


class Unread(Message, frozen=True):
    """Detokenizer to scheduler: of those that ``Resume`` named, nobody reads these any more."""

    sequences: list[Sequence]


class StopFound(Message, frozen=True):
    """Detokenizer to scheduler: a stop string ends the sequence at this many output tokens."""

    sequence: Sequence
    output_tokens: int


class ClientGone(Message, frozen=True):
    """Detokenizer to scheduler: nobody reads this client's text any more; cancel all of it."""

    client: str


# ---- detokenizer to client ----------------------------------------------------------------------


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


# Upper edges of the histograms in AdapterMetrics and TenantMetrics, in seconds.
METRIC_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class LoadMetrics(Part, frozen=True):
    """How long a process took to bring adapters to its memory."""

    process: str
    tier: str  # "host": read from disk and checked; "device": copied from host memory
    seconds: list[int]  # histogram: counts in LOAD_BUCKETS_S, and one more for the rest
    seconds_sum: float


# Upper edges of the histograms in LoadMetrics, in seconds: a small adapter takes less than one
# millisecond, a large one from a slow disk a minute.
LOAD_BUCKETS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
)  # fmt: skip


class Report(Message, frozen=True):
    """Detokenizer to client: the answer to ``Inspect``."""

    label: str
    sections: dict[str, dict[str, float]]
    adapters: list[AdapterMetrics]
    tenants: list[TenantMetrics] = []
    loads: list[LoadMetrics] = []


# ---- link control: every edge, both ways --------------------------------------------------------


class Hello(Message, frozen=True):
    """Connecting side to bound side: open the link. Nothing else is heard before it."""

    window: int  # messages that the sender is ready to receive beyond those acknowledged


class Welcome(Message, frozen=True):
    """Bound side to connecting side: the link is open."""

    window: int


class Ack(Message, frozen=True):
    """Either side: nothing but the envelope's acknowledgement. Costs no credit."""


class Goodbye(Message, frozen=True):
    """Either side: the link is closed on purpose; what it held can go at once."""


LinkInbox = Hello | Welcome | Ack | Goodbye

# What each actor hears.
TokenizerInbox = (
    Submit | Cancel | ListModels | Inspect | LoadAdapter | UnloadAdapter | PinAdapter
    | PrefetchAdapter | ListAdapters | Catalog | Reject | Away | AdapterReply
)  # fmt: skip
AdaptersInbox = (
    Acquire | Release | CatalogSeen | Retired | DeviceRoom | AdapterRequest | Discover | Inspection
)  # fmt: skip
RouterInbox = (
    Generate | Abort | CatalogSeen | Reject | Away | Progress | HandOver | Yielded | AdapterReply
    | Inspection
)  # fmt: skip
SchedulerInbox = (
    Generate | Abort | CatalogSeen | Inspection | Acquired | AcquireFailed | KeepOnDevice | Retire
    | AdapterReply
    | RunnerReady | StepDone | StopFound | ClientGone
    | Yield | HandOver | Settled | Marked | Unread
)  # fmt: skip
RunnerInbox = Step | Inspection
DetokenizerInbox = Begin | Sampled | Mark | Resume | Inspection
ClientInbox = Refused | Models | AdapterAnswer | Accepted | Text | Report
