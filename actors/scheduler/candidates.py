"""Those who wait, as the policy that admits them looks at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from weft.actors.scheduler import policy
from weft.actors.scheduler.loading import Loading
from weft.actors.scheduler.policy import Admission, Candidate, Need, Room
from weft.actors.scheduler.prefixes import PrefixCache
from weft.actors.scheduler.sequence import Request, Sequence
from weft.actors.scheduler.waiting import Waiting
from weft.runtime.config import Config


class Candidates:
    """Who may start, in which order they are looked at, and what each one needs."""

    def __init__(
        self, config: Config, waiting: Waiting, *, cache: PrefixCache, loading: Loading
    ) -> None:
        self._waiting = waiting
        self._cache = cache
        self._loading = loading
        self._shares_prompts = config.enable_prefix_caching
        self._chunks_prompts = config.enable_chunked_prefill

    def admit(self, room: Room, *, alone: Request | None) -> Admission:
        """Return who starts in this room, of all or of one request, and note who was overtaken."""
        needs: dict[int, Need] = {}  # of those that were looked at and may start

        def need(number: int) -> Need:
            needs[number] = self._need(self._waiting[number])
            return needs[number]

        def tokens(sequence: Sequence) -> int:
            needed = needs.get(sequence.number)
            return len(sequence.tokens) if needed is None else needed.tokens

        order = self._waiting.in_order(tokens)
        if alone is not None:
            order = (s for s in alone.sequences if self._waiting.has(s.number))
        elif len(self._waiting) > policy.LOOK_AHEAD:
            order = self._without_gaps(order, tokens, frozenset(room.pinned))
        admission = policy.admit(
            map(self._candidate, order),
            room,
            need=need,
            is_at_hand=self._loading.is_at_hand,
        )
        for number in admission.overtaken:
            self._waiting[number].overtaken += 1
        return admission

    def _without_gaps(
        self,
        order: Iterator[Sequence],
        tokens: Callable[[Sequence], int],
        running: frozenset[str],
    ) -> Iterator[Sequence]:
        """Yield the first of all, and then the first of those that need only ``running`` adapters.

        Or, where more tenants are first whose adapters must wait than are looked at, rows would
        stay empty that others could have.
        """
        seen = set()
        for sequence in islice(order, policy.LOOK_AHEAD // 2):
            seen.add(sequence.number)
            yield sequence
        for sequence in self._waiting.in_order(tokens, adapters=running):
            if sequence.number not in seen:
                yield sequence

    def _candidate(self, sequence: Sequence) -> Candidate:
        return Candidate(
            sequence.number,
            sequence.request.adapters,
            sequence.overtaken,
            self._is_ready(sequence),
        )

    def _is_ready(self, sequence: Sequence) -> bool:
        if sequence.in_flight:
            return False  # preempted while its last token was under way
        shares_prompt = (
            self._shares_prompts and len(sequence.request.generate.prompt) > self._cache.page_tokens
        )
        is_first = sequence is sequence.request.sequences[0]  # of those that are here
        return is_first or not shares_prompt or sequence.request.leads

    def _need(self, sequence: Sequence) -> Need:
        found = self._cache.find(sequence.request.identity, sequence.tokens)
        tokens = len(sequence.tokens) - len(found) * self._cache.page_tokens
        return Need(
            pages=self._cache.cost(found, len(sequence.tokens)),
            adapter_pages=self._loading.pages_to_take(sequence),
            tokens=tokens,
            tokens_min=1 if self._chunks_prompts else tokens,
        )
