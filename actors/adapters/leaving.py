"""Content that no name means any more, on its way out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from weft.actors.adapters.asked import Asked
from weft.runtime.messages import Retire


@dataclass(slots=True)
class _Left:
    version: int  # of the catalog that did without it
    is_retiring: bool = False  # the schedulers were told
    holders: set[str] = field(default_factory=set)  # schedulers that may still have requests
    waiting: list[Asked] = field(default_factory=list)  # unloads to be answered at its end


class Leaving:
    """What is still used by requests that were accepted when it had a name.

    A content passes three doors, in this order, before anything of it is forgotten: the tokenizer
    has seen the catalog without it (so no new request names it), the schedulers hold every request
    that the tokenizer had resolved before (``CatalogSeen`` took the same way, behind them), and the
    last of them has ended, at every scheduler (``Retired``). Getting a name again at any moment
    turns it back.
    """

    def __init__(self, schedulers: Iterable[str]) -> None:
        self._schedulers = frozenset(schedulers)
        self._left: dict[str, _Left] = {}  # by digest

    def __len__(self) -> int:
        return len(self._left)

    def __contains__(self, digest: str) -> bool:
        return digest in self._left

    def leave(self, digest: str, version: int) -> None:
        """Begin: the catalog of this version does without it."""
        self._left[digest] = _Left(version)

    def wait(self, digest: str, asked: Asked) -> None:
        """Answer an unload once the content is gone."""
        self._left[digest].waiting.append(asked)

    def return_(self, digest: str) -> list[Asked]:
        """Turn back what has a name again; return the unloads that wait for its end."""
        left = self._left.pop(digest, None)
        return left.waiting if left else []

    def seen(self, version: int) -> list[Retire]:
        """Return what every scheduler must be told now that this catalog has been seen."""
        due = []
        for digest, left in self._left.items():
            if left.version <= version and not left.is_retiring:
                left.is_retiring = True
                left.holders |= self._schedulers
                due.append(Retire(digest, left.version))
        return due

    def used(self, scheduler: str, digest: str) -> Retire | None:
        """Return what a scheduler must be told once more that uses what it had retired.

        Another one has handed over a request to it, and has not said ``Retired`` itself.
        """
        left = self._left.get(digest)
        if left is None or not left.is_retiring or scheduler in left.holders:
            return None
        left.holders.add(scheduler)
        return Retire(digest, left.version)

    def retired(self, scheduler: str, digest: str, version: int) -> list[Asked] | None:
        """Return the unloads to answer, once all schedulers have said so of its last leave."""
        left = self._left.get(digest)
        if left is None or left.version != version or not left.is_retiring:
            return None  # it has a name again, or had one in between
        left.holders.discard(scheduler)
        return None if left.holders else self._left.pop(digest).waiting

    def unsent(self) -> None:
        """Forget that schedulers were told: one of them is gone."""
        for left in self._left.values():
            left.is_retiring = False
