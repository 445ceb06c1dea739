"""Which names mean what, from when on, and what becomes of content whose last name is gone."""

from __future__ import annotations

from weft.runtime.messages.base import Message, Part
from weft.runtime.messages.defaults import AdapterDefaults


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


class Discover(Message, frozen=True):
    """Tokenizer to adapters: read an adapter whose entry is unread; the catalog then says more."""

    name: str


class CatalogSeen(Message, frozen=True):
    """Tokenizer to scheduler to adapters: names were resolved by this catalog from here on.

    Links keep their order. So when the store hears it, the scheduler holds every request that was
    resolved by an older catalog: no digest that has no name in this one comes up again. The router
    passes it to the first of several schedulers once each of those requests has been accepted.
    """

    version: int


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
