"""Composes steps: which sequences run, on which rows and pages, with which adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from weft.actors.scheduler import policy
from weft.actors.scheduler.draft import Composed, Draft
from weft.actors.scheduler.gathering import Gathering
from weft.actors.scheduler.host import HostPins
from weft.actors.scheduler.pages import Pages
from weft.actors.scheduler.policy import Candidate, Need, Room
from weft.actors.scheduler.prefixes import PrefixCache
from weft.actors.scheduler.sequence import Request, Rows, Sequence
from weft.actors.scheduler.slots import AdapterSlots
from weft.actors.scheduler.waiting import Waiting
from weft.runtime.config import Config
from weft.runtime.messages import (
    Acquire,
    Chunk,
    DeviceRoom,
    Join,
    Release,
    RunnerReady,
)


class Composer:
    """Owner of rows, pages and adapters on the device, and of the order in which they are given.

    It lives as long as the runners do; who waits, and what is in host memory, outlive it. Steps are
    composed one ahead of the runner, and the runner executes them in order. Hence what a sequence
    leaves in step n is free for others in step n, even while n - 1 is being computed.
    """

    def __init__(
        self, config: Config, ready: RunnerReady, waiting: Waiting, host: HostPins
    ) -> None:
        self.rows = Rows(config.max_num_seqs)
        self.pages = Pages(ready.pages)
        self.cache = PrefixCache(
            self.pages, ready.page_tokens, caching=config.enable_prefix_caching
        )
        self.host = host
        assert ready.adapter_slots >= config.max_loras_per_batch
        self.slots = AdapterSlots(
            ready.adapter_slots,
            self.pages,
            page_granules=ready.page_granules,
            policy=config.lora_eviction_policy,
        )
        self.waiting = waiting
        self.gathering = Gathering(waiting, self._is_at_hand)
        self.alone: Request | None = None  # nobody else may have a row
        self.preemptions = 0
        self._config = config
        self._page_granules = ready.page_granules
        self._leaves: list[int] = []
        self._rotation: tuple[str, int] | None = None  # due at the start of the next step

    @property
    def room_to_stay(self) -> DeviceRoom:
        """What adapters may take that nobody uses."""
        slots = self.slots.count - self._config.max_loras_per_batch
        return DeviceRoom(slots, self.pages.count // 2, self._page_granules)

    def output_max(self, sequence: Sequence) -> int:
        """Return how many tokens after the prompt fit if it runs alone. Raises ``NeverFits``.

        While an adapter's size is not known it counts as nothing.
        """
        return policy.output_max(
            len(sequence.request.generate.prompt),
            sum(self._adapter_pages(sequence)),
            pages=self.pages.count,
            page_tokens=self.cache.page_tokens,
        )

    def remove(self, sequence: Sequence) -> None:
        """Take back everything that a sequence has, whatever its state."""
        if sequence.row is not None:
            self._leave(sequence)
        elif sequence.holding is None:
            self.waiting.remove(sequence)
        self._release(sequence)

    def forget(self, digest: str) -> bool:
        """Free all that is kept for an adapter without requests; False: something is under way."""
        if self.host.has(digest):
            return False
        self.slots.drop(digest)
        self.cache.drop(digest)
        return True

    def host_messages(self, lacking: list[int], steps_done: int) -> list[Acquire | Release]:
        """Return what the adapter store must be told; ``steps_done`` is the first not answered.

        ``lacking`` are sequences that lack adapters, the most urgent first.
        """
        messages: list[Acquire | Release] = []
        missing = self.slots.missing
        if len(self.host):
            needed: set[str] = {*(self.waiting.adapters - self.slots.resident)}
            if self.waiting.several:
                needed = set(filter(self.gathering.may_hold, needed))
            needed.update(missing)
            if self.alone is not None:  # the others keep no room from it
                needed.intersection_update(self.alone.adapters)
            messages += self.host.release(needed, steps_done)
        for digest in self.gathering.wanted(lacking):
            messages += self.host.want(digest)
        if self.alone is not None:
            return messages
        for digest in (*self._waited_for(), *missing):
            if not self.host.has_room_ahead:
                break
            messages += self.host.want(digest)
        return messages

    def compose(self, number: int) -> tuple[Composed | None, list[int]]:
        """Return the next step, if there is anything to do, and who lacked adapters for it."""
        draft = Draft(number, self._config.max_num_batched_tokens)
        self.slots.hold()
        self._rotate()
        self._decode(draft)
        self._prefill(draft)
        lacking = self._admit(draft) if self.waiting and not draft.preempted else []
        if self.waiting and self.slots.held and not self._pages_of_sequences:
            self.slots.relent()
            lacking = self._admit(draft)  # now that nothing else is in the way
        self.gathering.take_turns(lacking)
        self._load_gathered(draft)
        if self.alone is None:
            self._load_those_that_stay(draft)
        if (draft.sampled or draft.chunks) and self.alone is None:
            self._load_ahead(draft)
        composed = draft.finish(self._leaves)
        if composed is not None:
            self._leaves = []
        return composed, lacking

    def let_alone(self, request: Request | None) -> None:
        """Give rows to nobody else, and take those of all others; None: to anybody again."""
        self.alone = request
        if request is not None:
            self.gathering.let_alone(request)
        others = [s for s in self.rows if request is not None and s.request is not request]
        for sequence in reversed(others):
            self._preempt(sequence)

    def counters(self) -> dict[str, float]:
        """Return what is free, and who holds the rest: pages add up to ``pages``."""
        pages, slots = self.pages, self.slots
        return {
            "rows_running": len(self.rows),
            "rows": self.rows.count,
            "pages": pages.count,
            "pages_free": pages.free,
            "pages_sequences": self._pages_of_sequences,
            "pages_cached": pages.idle - slots.pages_idle,
            "pages_adapters": slots.pages_owned,
            "pages_adapters_idle": slots.pages_idle,
            "pages_adapters_held": slots.pages_held,
            "adapter_slots": slots.count,
            "adapters_in_batch": len(slots.pinned),
            "adapters_in_batch_max": self._config.max_loras_per_batch,
            "adapters_resident": len(slots.resident),
            "adapters_staying": slots.held,
            "adapter_pins": slots.pin_count,
            "adapter_evictions_total": slots.evictions,
            "preemptions_total": self.preemptions,
        }

    def check(self) -> None:
        """Assert the invariants of everything that a sequence can hold."""
        self.rows.check()
        self.pages.check(self.cache.owned(), self.slots.owned())
        self.cache.check()
        self.slots.check()
        assert len(self.slots.pinned) <= self._config.max_loras_per_batch
        assert self.slots.pin_count == sum(len(s.request.adapters) for s in self.rows)

    @property
    def _pages_of_sequences(self) -> int:
        """Pages of those that run, and of those that have left and whose last step is under way."""
        of_adapters = self.slots.pages_owned - self.slots.pages_idle
        return self.pages.count - self.pages.available - of_adapters

    def _decode(self, draft: Draft) -> None:
        """Every running sequence that has sampled feeds its last token."""
        page_tokens = self.cache.page_tokens
        for sequence in list(self.rows):
            if sequence.is_prefilling or sequence.row is None:
                continue
            if sequence.is_fully_ordered:
                self._leave(sequence)
                continue
            assert sequence.holding is not None
            if sequence.computed == sequence.holding.count * page_tokens:
                self._make_room(sequence, draft)
                if sequence.row is None:
                    continue
                draft.page_rows.append(sequence.row)
                draft.page_ids += self.cache.grow(sequence.holding, 1)
            sequence.computed += 1
            sequence.in_flight += 1
            draft.sampled.append(sequence)
        draft.sampled = [sequence for sequence in draft.sampled if sequence.row is not None]
        draft.tokens_left -= len(draft.sampled)

    def _make_room(self, sequence: Sequence, draft: Draft) -> None:
        """Preempt the sequences admitted last until a page is available."""
        while self.pages.available == 0 and sequence.row is not None:
            assert sequence.holding is not None
            is_alone = self.slots.held and self._pages_of_sequences == sequence.holding.count
            if is_alone and self.slots.relent():
                continue
            victim = self.rows.youngest
            if victim in draft.sampled:
                victim.computed -= 1
                victim.in_flight -= 1
                draft.forget_pages(victim)
            self._preempt(victim)
            draft.preempted += 1

    def _prefill(self, draft: Draft) -> None:
        """Sequences whose tokens are not all computed get what is left of the token budget."""
        for sequence in self.rows:
            if draft.tokens_left == 0:
                return
            if sequence.is_prefilling:
                self._feed(sequence, draft)

    def _feed(self, sequence: Sequence, draft: Draft) -> None:
        assert sequence.row is not None
        start = sequence.computed
        end = min(sequence.prefill_end, start + draft.tokens_left)
        is_last = end == sequence.prefill_end
        draft.chunks.append(Chunk(sequence.row, start, sequence.tokens[start:end], is_last))
        draft.tokens_left -= end - start
        sequence.computed = end
        draft.computed.append(sequence)
        if is_last:
            sequence.in_flight += 1
            draft.sampled.append(sequence)

    def _admit(self, draft: Draft) -> list[int]:
        if self.rows.free == 0 or draft.tokens_left <= 0:
            return []
        reserve = len(self.rows) // 2  # pages that running sequences will soon grow by
        room = Room(
            rows=self.rows.free,
            tokens=draft.tokens_left,
            pages=self.pages.available - reserve,
            adapters=self._config.max_loras_per_batch,
            pinned=self.slots.pinned,
            resident=self.slots.resident,
        )
        needs: dict[int, Need] = {}  # of those that were looked at and may start

        def need(number: int) -> Need:
            needs[number] = self._need(self.waiting[number])
            return needs[number]

        def tokens(sequence: Sequence) -> int:
            needed = needs.get(sequence.number)
            return len(sequence.tokens) if needed is None else needed.tokens

        order = self.waiting.in_order(tokens)
        if self.alone is not None:
            order = (s for s in self.alone.sequences if self.waiting.has(s.number))
        elif len(self.waiting) > policy.LOOK_AHEAD:
            order = self._without_gaps(order, tokens)
        admission = policy.admit(
            map(self._candidate, order),
            room,
            need=need,
            is_at_hand=self._is_at_hand,
        )
        for number in admission.overtaken:
            self.waiting[number].overtaken += 1
        admitted = [self.waiting[number] for number in admission.admitted]
        slots = self._pin(admitted, draft)
        for sequence in admitted:
            self._start(sequence, slots, draft)
        self._begin(admitted, draft)
        if admission.starving is not None:
            needed = self.waiting[admission.starving].request.adapters
            others = self.slots.pinned_since.items()
            running = {adapter: since for adapter, since in others if adapter not in needed}
            adapter = policy.rotate(running, draft.number)
            if adapter is not None:
                self._rotation = (adapter, admission.starving)
        return admission.lacking

    def _without_gaps(
        self, order: Iterator[Sequence], tokens: Callable[[Sequence], int]
    ) -> Iterator[Sequence]:
        """Yield the first of all, and then the first of those that lack no adapter's slot.

        Or, where more tenants are first whose adapters must wait than are looked at, rows would
        stay empty that others could have.
        """
        seen = set()
        for sequence in islice(order, policy.LOOK_AHEAD // 2):
            seen.add(sequence.number)
            yield sequence
        for sequence in self.waiting.in_order(tokens, adapters=frozenset(self.slots.pinned)):
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
            self._config.enable_prefix_caching
            and len(sequence.request.generate.prompt) > self.cache.page_tokens
        )
        is_first = sequence is sequence.request.sequences[0]  # of those that are here
        return is_first or not shares_prompt or sequence.request.leads

    def _waited_for(self) -> list[str]:
        """Return adapters of waiting sequences that are not on the device, longest waited first."""
        resident = self.slots.resident
        waited_for = islice(self.waiting.adapters, policy.LOOK_AHEAD)
        absent = [adapter for adapter in waited_for if adapter not in resident]
        return list(filter(self.gathering.may_hold, absent)) if self.waiting.several else absent

    def _load_ahead(self, draft: Draft) -> None:
        """Put adapters that are waited for where nobody is, beside what the step computes."""
        free = self.pages.free - len(self.rows) // 2  # what running sequences will soon grow by
        for adapter in self._waited_for():
            if len(draft.loads) >= policy.LOADS_MAX or not self.slots.has_free:
                return
            acquired = self.host.get(adapter)
            if acquired is None:
                continue
            free -= self.slots.page_count(adapter, acquired)
            if free < 0:
                return
            draft.loads.append(self.slots.load(self.host.read(adapter, draft.number)))

    def _load_gathered(self, draft: Draft) -> None:
        """Make room in host memory for the rest of what a sequence gathers."""
        own = self.gathering.adapters
        for adapter in own:
            acquired = self.host.get(adapter)
            if acquired is None or adapter in self.slots.resident:
                continue
            room = self.pages.available - len(self.rows) // 2
            room -= sum(self.slots.page_count(each, None) for each in self.slots.idle & {*own})
            if not (self.slots.has_free or self.slots.idle - {*own}):
                return
            if room >= self.slots.page_count(adapter, acquired):
                draft.loads.append(self.slots.load(self.host.read(adapter, draft.number), keep=own))

    def _load_those_that_stay(self, draft: Draft) -> None:
        """Put adapters on the device that are to stay there, in place of who is idle."""
        room = self.pages.available - len(self.rows)  # what running sequences will soon grow by
        for adapter in self.slots.missing:
            acquired = self.host.get(adapter)
            if acquired is None or len(draft.loads) >= policy.LOADS_MAX:
                continue
            room -= self.slots.page_count(adapter, acquired)
            if room < 0:
                return
            draft.loads.append(self.slots.load(self.host.read(adapter, draft.number)))
        self.slots.hold()

    def _need(self, sequence: Sequence) -> Need:
        found = self.cache.find(sequence.request.identity, sequence.tokens)
        tokens = len(sequence.tokens) - len(found) * self.cache.page_tokens
        return Need(
            pages=self.cache.cost(found, len(sequence.tokens)),
            adapter_pages=self._adapter_pages_to_take(sequence),
            tokens=tokens,
            tokens_min=1 if self._config.enable_chunked_prefill else tokens,
        )

    def _adapter_pages(self, sequence: Sequence) -> tuple[int, ...]:
        """Return the pages of each of a sequence's adapters, as far as they are known."""
        known = sequence.request.granules
        return tuple(
            self.slots.page_count(adapter, self.host.get(adapter))
            if self._is_at_hand(adapter)
            else -(-known.get(adapter, 0) // self._page_granules)
            for adapter in sequence.request.adapters
        )

    def _adapter_pages_to_take(self, sequence: Sequence) -> tuple[int, ...]:
        """Return what each adapter takes of the pages that are available."""
        pages = zip(sequence.request.adapters, self._adapter_pages(sequence), strict=True)
        return tuple(0 if self.slots.is_held(adapter) else count for adapter, count in pages)

    def _is_at_hand(self, adapter: str) -> bool:
        return adapter in self.slots.resident or self.host.get(adapter) is not None

    def _pin(self, sequences: list[Sequence], draft: Draft) -> dict[str, int]:
        """Give each sequence its adapters; return their slots."""
        pins = [adapter for sequence in sequences for adapter in sequence.request.adapters]
        # Residents first, so that nobody's load or prompt evicts what another is about to use.
        pins.sort(key=lambda adapter: adapter not in self.slots.resident)
        slots = {}
        for adapter in pins:
            if adapter not in self.slots.resident:
                draft.loads.append(self.slots.load(self.host.read(adapter, draft.number)))
            slots[adapter] = self.slots.pin(adapter, draft.number)
        return slots

    def _start(self, sequence: Sequence, slots: dict[str, int], draft: Draft) -> None:
        """Move a waiting sequence to a row; ``slots`` are those of adapters."""
        generate, identity = sequence.request.generate, sequence.request.identity
        found = self.cache.find(identity, sequence.tokens)
        sequence.holding = self.cache.hold(identity, found, len(sequence.tokens))
        self.waiting.remove(sequence)
        sequence.computed = len(found) * self.cache.page_tokens
        sequence.prefill_end = len(sequence.tokens)
        sequence.overtaken = 0
        if sequence.cached_tokens is None:
            # What is computed again after a preemption is no service.
            sequence.cached_tokens = sequence.computed
            tenant = sequence.request.tenant
            tenant.counter += tenant.input_price * (sequence.prefill_end - sequence.computed)
        draft.joins.append(
            Join(
                row=self.rows.take(sequence),
                adapters=[(slots[use.digest], use.scale) for use in generate.adapters],
                position=sequence.computed,
                pages=sequence.holding.pages,
                sampling=generate.sampling,
                choice=sequence.choice,
                prompt_tokens=len(generate.prompt),
                history=list(sequence.tokens) if generate.sampling.needs_history else None,
                lora_start=generate.lora_start,
            )
        )
        draft.admitted.append(sequence)

    def _begin(self, admitted: list[Sequence], draft: Draft) -> None:
        """Feed those whose adapters are there; the others, when theirs have been copied.

        That happens while this step is computed, so the next one need not wait for it. If there is
        nothing else to compute they are fed now.
        """
        loading = {load.digest for load in draft.loads}
        later = [s for s in admitted if not loading.isdisjoint(s.request.adapters)]
        for sequence in admitted:
            if draft.tokens_left and sequence not in later:
                self._feed(sequence, draft)
        if not (draft.sampled or draft.chunks):
            for sequence in later:
                if draft.tokens_left:
                    self._feed(sequence, draft)

    def _rotate(self) -> None:
        """Make the adapter that has run longest give way to the starving sequence."""
        if self._rotation is None:
            return
        (adapter, starving), self._rotation = self._rotation, None
        if not self.waiting.has(starving):
            return
        running = [s for s in self.rows if adapter in s.request.adapters]
        for sequence in reversed(running):
            self._preempt(sequence)
        self.waiting.move_to_front(starving)

    def _preempt(self, sequence: Sequence) -> None:
        """Send a running sequence back to the head of the queue; its KV is computed again later."""
        self._leave(sequence)
        self._release(sequence)
        sequence.computed = 0
        sequence.prefill_end = 0
        self.waiting.prepend(sequence)
        self.preemptions += 1

    def _leave(self, sequence: Sequence) -> None:
        self._leaves.append(self.rows.give_back(sequence))
        for adapter in sequence.request.adapters:
            self.slots.unpin(adapter)

    def _release(self, sequence: Sequence) -> None:
        if sequence.holding is not None:
            known = min(sequence.computed, len(sequence.tokens))
            self.cache.release(sequence.holding, sequence.tokens, known)
            sequence.holding = None
