"""Composes steps: which sequences run, on which rows and pages, with which adapters."""

from __future__ import annotations

from collections.abc import Iterable

from weft.actors.scheduler import policy
from weft.actors.scheduler.candidates import Candidates
from weft.actors.scheduler.draft import Composed, Draft
from weft.actors.scheduler.host import HostPins
from weft.actors.scheduler.loading import Loading
from weft.actors.scheduler.pages import Pages
from weft.actors.scheduler.policy import Room
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
        self.loading = Loading(waiting, host, slots=self.slots, pages=self.pages, rows=self.rows)
        self.candidates = Candidates(config, waiting, cache=self.cache, loading=self.loading)
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
            sum(self.loading.pages_of(sequence)),
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
        return self.loading.host_messages(lacking, steps_done, alone=self.alone)

    def compose(self, number: int) -> tuple[Composed | None, list[int]]:
        """Return the next step, if there is anything to do, and who lacked adapters for it."""
        draft = Draft(number, self._config.max_num_batched_tokens)
        self.slots.hold()
        self._rotate()
        self._decode(draft)
        self._prefill(draft, self.rows)
        lacking = self._admit(draft) if self.waiting and not draft.preempted else []
        if self.waiting and self.slots.held and not self._pages_of_sequences:
            self.slots.relent()
            lacking = self._admit(draft)  # now that nothing else is in the way
        if not draft.computes:
            self._prefill_waiting(draft)
        self.loading.load(draft, lacking, alone=self.alone)
        composed = draft.finish(self._leaves)
        if composed is not None:
            self._leaves = []
        return composed, lacking

    def let_alone(self, request: Request | None) -> None:
        """Give rows to nobody else, and take those of all others; None: to anybody again."""
        self.alone = request
        if request is not None:
            self.loading.gathering.let_alone(request)
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

    def _prefill(self, draft: Draft, sequences: Iterable[Sequence]) -> None:
        """Sequences whose tokens are not all computed get what is left of the token budget.

        Not those whose adapters are still being copied: everybody else would wait with them.
        """
        for sequence in sequences:
            if draft.tokens_left == 0:
                return
            if sequence.is_prefilling and not self._waits_for_copy(sequence):
                self._feed(sequence, draft)

    def _prefill_waiting(self, draft: Draft) -> None:
        """Feed the first of those whose adapters are being copied: there is nobody else."""
        for sequence in self.rows:
            if sequence.is_prefilling and self._waits_for_copy(sequence):
                self._feed(sequence, draft)
                return

    def _waits_for_copy(self, sequence: Sequence) -> bool:
        return any(map(self.slots.is_loading, sequence.request.adapters))

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
        admission = self.candidates.admit(room, alone=self.alone)
        admitted = [self.waiting[number] for number in admission.admitted]
        slots = self.loading.pin(admitted, draft)
        for sequence in admitted:
            self._start(sequence, slots, draft)
        self._prefill(draft, admitted)
        if admission.starving is not None:
            needed = self.waiting[admission.starving].request.adapters
            others = self.slots.pinned_since.items()
            running = {adapter: since for adapter, since in others if adapter not in needed}
            adapter = policy.rotate(running, draft.number)
            if adapter is not None:
                self._rotation = (adapter, admission.starving)
        return admission.lacking

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
