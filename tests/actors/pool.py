"""The pool with all its kinds of owners, used as the composer does, and what lies in each page."""

from dataclasses import dataclass

from weft.actors.adapters.base import LinearShape
from weft.actors.adapters.granules import Size, of_module
from weft.actors.scheduler.pages import Pages
from weft.actors.scheduler.prefixes import Holding, Identity, PrefixCache
from weft.actors.scheduler.slots import AdapterSlots
from weft.runtime.messages import Acquired

SHAPE = LinearShape(256, 256)  # of the one module that adapters change
PAGE_TOKENS = 4
PAGE_GRANULES = 8


@dataclass(eq=False)
class Running:
    uses: tuple  # of adapters and scales
    first: int  # token of the adapters'
    tokens: list[int]
    holding: Holding

    @property
    def adapters(self):
        return [adapter for adapter, _ in self.uses]


class Pool:
    """Adapters are named by their ranks: "r64.1" is of rank 64."""

    def __init__(self, *, pages, slots, policy):
        self.pages = Pages(pages)
        self.cache = PrefixCache(self.pages, PAGE_TOKENS, caching=True)
        self.slots = AdapterSlots(slots, self.pages, page_granules=PAGE_GRANULES, policy=policy)
        self.running = []
        self.contents = {}  # of pages, as a device would have written them
        self.hits = 0

    def start(self, uses, tokens, first=0):
        """Run a sequence if there is room for it and for all of its adapters. Was there?"""
        adapters = [adapter for adapter, _ in uses]
        identity = Identity("", uses, first)
        found = self.cache.find(identity, tokens)
        available = self.pages.available
        cost = self.cache.cost(found, len(tokens)) + sum(map(self._adapter_cost, adapters))
        if cost > available or self._are_too_many(adapters):
            return False
        for adapter in sorted(adapters, key=lambda each: each not in self.slots.resident):
            if adapter not in self.slots.resident:
                load = self.slots.load(acquired(adapter), 0)
                self.contents.update(
                    {page: (adapter, part) for part, page in enumerate(load.pages)}
                )
            self.slots.pin(adapter, 0)
        found = self.cache.find(identity, tokens)
        self.hits += len(found)
        running = Running(uses, first, tokens, self.cache.hold(identity, found, len(tokens)))
        for index, node in enumerate(found):
            assert self.contents[node.page] == kv(running, index)
        self.running.append(running)
        self._write(running)
        assert self.pages.available == available - cost
        return True

    def grow(self, running, tokens):
        """Append tokens to a sequence if there is room for them. Was there?"""
        missing = self.cache.pages_for(len(running.tokens) + len(tokens)) - running.holding.count
        if missing > self.pages.available:
            return False
        running.tokens += tokens
        self.cache.grow(running.holding, missing)
        self._write(running)
        return True

    def share(self, running):
        self.cache.share(running.holding, running.tokens, len(running.tokens))

    def end(self, running, computed=None):
        """End a sequence of which so many tokens were computed; by default all."""
        computed = len(running.tokens) if computed is None else computed
        computed = max(computed, len(running.holding.nodes) * PAGE_TOKENS)
        self.running.remove(running)
        self.cache.release(running.holding, running.tokens, computed)
        for adapter in running.adapters:
            self.slots.unpin(adapter)

    def check(self):
        """Assert every owner's invariants, and that nobody's pages were written by another."""
        self.pages.check(self.cache.owned(), self.slots.owned())
        self.cache.check()
        self.slots.check()
        held = {page for running in self.running for page in running.holding.pages}
        pins = [adapter for running in self.running for adapter in running.adapters]
        assert self.slots.pinned == set(pins)
        assert self.slots.pin_count == len(pins)
        pinned = sum(self.slots.page_count(adapter, None) for adapter in self.slots.pinned)
        assert self.pages.available == self.pages.count - len(held) - pinned
        for adapter in self.slots.resident:
            pages = self.slots._residents[adapter].pages
            assert [self.contents[page] for page in pages] == [
                (adapter, part) for part in range(len(pages))
            ]
        for running in self.running:
            for index, page in enumerate(running.holding.pages):
                assert self.contents[page] == kv(running, index)

    def _write(self, running):
        first = len(running.holding.nodes)
        for index, page in enumerate(running.holding.own, first):
            self.contents[page] = kv(running, index)

    def _adapter_cost(self, adapter):
        if adapter in self.slots.pinned:
            return 0
        return self.slots.page_count(adapter, acquired(adapter))

    def _are_too_many(self, adapters):
        return len(self.slots.pinned | set(adapters)) > self.slots.count


def acquired(adapter):
    rank = int(adapter[1:].partition(".")[0])
    return Acquired(adapter, f"/{adapter}", rank, 1, of_module(Size(rank), SHAPE))


def kv(running, index):
    """What a page of a sequence holds: it depends on all tokens before its end."""
    end = (index + 1) * PAGE_TOKENS
    whose = (running.uses, running.first) if running.uses and end > running.first else None
    return whose, tuple(running.tokens[:end])
