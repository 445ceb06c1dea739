"""What clients do with adapters: client, tokenizer, adapters, and by way of the schedulers back."""

from __future__ import annotations

from weft.runtime.messages.base import Message, Part
from weft.runtime.messages.defaults import DefaultsSummary
from weft.runtime.messages.requests import Refused


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


class AdapterRequest(Message, frozen=True):
    """Tokenizer to adapters: a client wants this. Answered by ``AdapterReply``."""

    client: str
    operation: AdapterOperation


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


class AdapterReply(Message, frozen=True):
    """Adapters to scheduler to tokenizer: the answer for a client.

    A scheduler fills in what it alone knows of each adapter: device and requests. Of several, one
    after the other does, each of which gives it back to the router; the numbers are sums.
    """

    client: str
    answer: AdapterAnswer | Refused
