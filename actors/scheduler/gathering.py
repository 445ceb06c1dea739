"""Which adapters may lie in host memory for those who wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from weft.actors.scheduler.sequence import Request, Sequence
from weft.actors.scheduler.waiting import Waiting


class Gathering:
    """Of sequences that lack some of several adapters, one at a time has them fetched.

    If each of several held some of what it needs, and host memory had no room for more, none would
    ever have all of it. One alone gets them one after another, if need be: what has come goes to
    the device, which has room for all of them, before the rest comes. Everyone else who holds
    something has all that it needs, and so will start and let go of it.
    """

    def __init__(self, waiting: Waiting, is_at_hand: Callable[[str], bool]) -> None:
        self._waiting = waiting
        self._is_at_hand = is_at_hand
        self._number: int | None = None  # of the sequence whose turn it is

    @property
    def adapters(self) -> tuple[str, ...]:
        """Those of the sequence whose turn it is."""
        request = self._request
        return () if request is None else request.adapters

    def let_alone(self, request: Request) -> None:
        """End the turn of whoever is not of this request."""
        if self._request is not request:
            self._number = None

    def take_turns(self, lacking: Iterable[int]) -> None:
        """Let the most urgent be the next, once the one whose turn it is has everything.

        ``lacking`` are sequences that lack adapters, the most urgent first.
        """
        if all(map(self._is_at_hand, self.adapters)):
            several = (n for n in lacking if len(self._waiting[n].request.adapters) > 1)
            self._number = next(several, None)

    def wanted(self, lacking: Iterable[int]) -> Iterator[str]:
        """Yield what is to be fetched for those who lack adapters, in their order."""
        for number in lacking:
            adapters = self._waiting[number].request.adapters
            if len(adapters) == 1 or number == self._number:
                yield from (adapter for adapter in adapters if not self._is_at_hand(adapter))

    def may_hold(self, adapter: str) -> bool:
        """Whether somebody who waits for an adapter may hold it in host memory."""
        if not self._waiting.several or adapter in self.adapters:
            return True
        return any(map(self._is_complete, self._waiting.all_of(adapter)))

    @property
    def _request(self) -> Request | None:
        if self._number is None or not self._waiting.has(self._number):
            return None
        return self._waiting[self._number].request

    def _is_complete(self, sequence: Sequence) -> bool:
        adapters = sequence.request.adapters
        return len(adapters) == 1 or all(map(self._is_at_hand, adapters))
