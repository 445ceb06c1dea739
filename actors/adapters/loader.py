"""What the adapter store asks of whoever reads adapters for it: it asks now and hears later."""

from __future__ import annotations

from typing import Annotated, NamedTuple, Protocol

import msgspec

from weft.actors.adapters.errors import BadAdapter
from weft.runtime.messages import AdapterDefaults

# Of what is said about an adapter. It quotes names from files, and goes into every catalog.
REASON_CHARACTERS_MAX = 1024

# Of an adapter that is activated. A phrase, or the beginning of a turn, has a few; every catalog
# repeats them.
INVOCATION_TOKENS_MAX = 256

_TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_Count = Annotated[int, msgspec.Meta(gt=0, lt=2**48)]


class Facts(msgspec.Struct, frozen=True, tag="facts", forbid_unknown_fields=True):
    """What the store needs to know of an adapter that has been read and found good."""

    digest: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    rank: _Count  # the largest
    size_bytes: _Count  # of its normalized file
    granules: _Count  # of the largest layer, on the device that has most of it
    tokens_added: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]  # beyond the base's vocabulary
    is_additive: bool  # it is updates alone: they may be multiplied, and added to others
    # It begins to act where a prompt has these last; none: at the start.
    invocation_tokens: Annotated[list[_TokenId], msgspec.Meta(max_length=INVOCATION_TOKENS_MAX)]
    defaults: AdapterDefaults | None = None  # of its folder


class Content(NamedTuple):
    """An adapter that has been read. Its file, if one was asked for, is the asker's from now on."""

    facts: Facts
    file: str | None  # the path of the normalized file
    source: str  # where the very same can be read again, as long as nobody changes it

    @property
    def digest(self) -> str:
        """The name of the content."""
        return self.facts.digest


class Loaded(NamedTuple):
    """What became of one ``start``."""

    ticket: int
    result: Content | BadAdapter


class Loader(Protocol):
    """Reads and checks adapters, several at a time. Only ``wait`` waits."""

    def start(self, source: str, *, with_file: bool) -> int:
        """Ask for the adapter of a source, and return a number to know the answer by.

        ``with_file``: also for its normalized file, whose path the answer tells.
        """
        ...

    def finished(self) -> list[Loaded]:
        """Return what has ended since the last call, in any order, each ticket once."""
        ...

    def wait(self) -> None:
        """Wait until ``finished`` may have more to say; something must be under way."""
        ...

    def cancel(self, ticket: int) -> bool:
        """Give up what was asked for; return whether that ends it: ``GivenUp`` follows then."""
        ...

    def counters(self) -> dict[str, float]:
        """Return what is told of it beside the store's own counters."""
        ...

    def close(self) -> None:
        """End what is under way, and leave nothing behind."""
        ...
