"""What each actor hears."""

from __future__ import annotations

from weft.runtime.messages.catalog import Catalog, CatalogSeen, Discover, Retire, Retired
from weft.runtime.messages.generation import Abort, Away, Generate, Progress, Reject
from weft.runtime.messages.inspection import Inspect, Inspection, Report
from weft.runtime.messages.moves import (
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
    AdapterReply,
    AdapterRequest,
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
from weft.runtime.messages.requests import Cancel, ListModels, Models, Refused, Submit
from weft.runtime.messages.steps import RunnerReady, Step, StepDone
from weft.runtime.messages.text import Accepted, Begin, ClientGone, Sampled, StopFound, Text

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
    | Yield | Marked | HandOver | Unread | Settled
)  # fmt: skip
RunnerInbox = Step | Inspection
DetokenizerInbox = Begin | Sampled | Mark | Resume | Inspection
ClientInbox = Refused | Models | AdapterAnswer | Accepted | Text | Report
