"""Every message that crosses a process boundary, by who talks to whom about what.

    client --Submit--> tokenizer --Generate--> scheduler --Step--> runner
    client <--Text-- detokenizer <--Sampled-- scheduler <--StepDone-- runner
    tokenizer <--Catalog-- adapters --Acquired--> scheduler

A request meets, in this order, ``requests``, ``generation``, ``steps`` and ``text``. About adapters
are the ``operations`` of clients, the ``catalog`` of names, the ``placement`` of weights, and
``defaults``, which is what folders say. Of several schedulers one may hand a request over to
another: ``moves``. ``inspection`` and ``links`` are about every edge, and
``inboxes`` lists what each actor hears.

A sequence is one choice of one request (``n`` of them share a prompt). The scheduler numbers
sequences from 1; inside, messages name sequences and never repeat a request's strings.
"""

from weft.runtime.messages.base import (
    Message,
    Part,
    Sequence,
)
from weft.runtime.messages.catalog import (
    AdapterEntry,
    Catalog,
    CatalogSeen,
    Discover,
    Retire,
    Retired,
)
from weft.runtime.messages.defaults import (
    AdapterDefaults,
    AddedToken,
    DefaultsSummary,
    SamplingDefaults,
)
from weft.runtime.messages.generation import (
    Abort,
    AdapterUse,
    Away,
    Generate,
    Progress,
    Reject,
    RowSampling,
)
from weft.runtime.messages.inboxes import (
    AdaptersInbox,
    ClientInbox,
    DetokenizerInbox,
    RouterInbox,
    RunnerInbox,
    SchedulerInbox,
    TokenizerInbox,
)
from weft.runtime.messages.inspection import (
    LOAD_BUCKETS_S,
    METRIC_BUCKETS_S,
    AdapterMetrics,
    Inspect,
    Inspection,
    LoadMetrics,
    Report,
    TenantMetrics,
)
from weft.runtime.messages.links import (
    Ack,
    Goodbye,
    Hello,
    LinkInbox,
    Welcome,
)
from weft.runtime.messages.moves import (
    HandedChoice,
    HandOver,
    Mark,
    Marked,
    Resume,
    Settled,
    Unread,
    Yield,
    Yielded,
)
from weft.runtime.messages.operations import (
    AdapterAnswer,
    AdapterOperation,
    AdapterReply,
    AdapterRequest,
    AdapterState,
    ListAdapters,
    LoadAdapter,
    PinAdapter,
    PrefetchAdapter,
    UnloadAdapter,
)
from weft.runtime.messages.placement import (
    Acquire,
    Acquired,
    AcquireFailed,
    DeviceRoom,
    KeepOnDevice,
    Release,
)
from weft.runtime.messages.requests import (
    LORA_SCALE_MAX,
    PRIORITY_MAX,
    Cancel,
    ChatMessage,
    ListModels,
    Lora,
    ModelEntry,
    Models,
    Refused,
    Sampling,
    Submit,
)
from weft.runtime.messages.steps import (
    AdapterLoad,
    Chunk,
    Join,
    RunnerReady,
    Step,
    StepDone,
    TokenLogprobs,
)
from weft.runtime.messages.text import (
    Accepted,
    Begin,
    ClientGone,
    End,
    FinishReason,
    Sampled,
    StopFound,
    Text,
    TextLogprobs,
)

__all__ = [
    "LOAD_BUCKETS_S",
    "LORA_SCALE_MAX",
    "METRIC_BUCKETS_S",
    "PRIORITY_MAX",
    "Abort",
    "Accepted",
    "Ack",
    "Acquire",
    "AcquireFailed",
    "Acquired",
    "AdapterAnswer",
    "AdapterDefaults",
    "AdapterEntry",
    "AdapterLoad",
    "AdapterMetrics",
    "AdapterOperation",
    "AdapterReply",
    "AdapterRequest",
    "AdapterState",
    "AdapterUse",
    "AdaptersInbox",
    "AddedToken",
    "Away",
    "Begin",
    "Cancel",
    "Catalog",
    "CatalogSeen",
    "ChatMessage",
    "Chunk",
    "ClientGone",
    "ClientInbox",
    "DefaultsSummary",
    "DetokenizerInbox",
    "DeviceRoom",
    "Discover",
    "End",
    "FinishReason",
    "Generate",
    "Goodbye",
    "HandOver",
    "HandedChoice",
    "Hello",
    "Inspect",
    "Inspection",
    "Join",
    "KeepOnDevice",
    "LinkInbox",
    "ListAdapters",
    "ListModels",
    "LoadAdapter",
    "LoadMetrics",
    "Lora",
    "Mark",
    "Marked",
    "Message",
    "ModelEntry",
    "Models",
    "Part",
    "PinAdapter",
    "PrefetchAdapter",
    "Progress",
    "Refused",
    "Reject",
    "Release",
    "Report",
    "Resume",
    "Retire",
    "Retired",
    "RouterInbox",
    "RowSampling",
    "RunnerInbox",
    "RunnerReady",
    "Sampled",
    "Sampling",
    "SamplingDefaults",
    "SchedulerInbox",
    "Sequence",
    "Settled",
    "Step",
    "StepDone",
    "StopFound",
    "Submit",
    "TenantMetrics",
    "Text",
    "TextLogprobs",
    "TokenLogprobs",
    "TokenizerInbox",
    "UnloadAdapter",
    "Unread",
    "Welcome",
    "Yield",
    "Yielded",
]
