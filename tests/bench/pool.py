"""What fits into the same memory: one pool, or a budget for KV beside slots of the largest rank.

Nothing is computed and no memory is used: pages are ids, handed out by the allocator that serves.
"""

from itertools import count, cycle

from tests.bench.table import markdown
from weft.actors.adapters import granules
from weft.actors.adapters.base import MODULES, BaseShapes
from weft.actors.scheduler.pages import Pages
from weft.actors.scheduler.prefixes import PrefixCache
from weft.actors.scheduler.slots import AdapterSlots
from weft.runtime.messages import Acquired

PAGE_TOKENS = 16
ELEMENT_BYTES = 2  # bfloat16, of KV and of adapters
GRANULE_BYTES = granules.RANKS * granules.COLUMNS * ELEMENT_BYTES
RANK_MAX = 64  # what a slot of a fixed size is made for

QWEN_7B = BaseShapes(
    num_hidden_layers=28, hidden_size=3584, intermediate_size=18944, num_attention_heads=28,
    num_key_value_heads=4,
)  # fmt: skip
QWEN_HALF_B = BaseShapes(
    num_hidden_layers=24, hidden_size=896, intermediate_size=4864, num_attention_heads=14,
    num_key_value_heads=2,
)  # fmt: skip

# Name, model, GiB for KV and adapters together: what a card has left beside the weights.
MEMORIES = (
    ("Qwen2.5-7B, 56 GiB beside the weights (a card of 80)", QWEN_7B, 56),
    ("Qwen2.5-7B, 7 GiB beside the weights (a card of 24)", QWEN_7B, 7),
    ("Qwen2.5-0.5B, 2 GiB beside the weights", QWEN_HALF_B, 2),
)
MIXES = {
    "8/16/64 at 50/30/20 %": (8, 16, 8, 64, 8, 16, 8, 16, 8, 64),
    "8, 16, 32, 64 in turn": (8, 16, 32, 64),
}
SLOTS = (8, 16, 32)
CONTEXTS = (0, 16_384, 65_536, 262_144)
ADAPTERS = (1, 8, 16, 32, 64, 128)


class Memory:
    """A pool of a number of bytes for a model, every adapter on all of its modules."""

    def __init__(self, base, gib):
        head = base.head_dim or base.hidden_size // base.num_attention_heads
        kv_bytes = 2 * PAGE_TOKENS * base.num_key_value_heads * head * ELEMENT_BYTES
        self._page_granules = -(-kv_bytes // GRANULE_BYTES)
        page_bytes = self._page_granules * GRANULE_BYTES * base.num_hidden_layers
        self._base = base
        self._pages = gib * 2**30 // page_bytes

    def adapters_beside(self, tokens, mix):
        """How many adapters stay while sequences hold so many tokens; None: those do not fit."""
        pages, cache, slots = self._owners(self._pages)
        if cache.pages_for(tokens) > pages.available:
            return None
        cache.hold("", None, [], tokens)
        for number, rank in zip(count(), cycle(mix)):
            acquired = self._acquired(number, rank)
            if slots.page_count(acquired.digest, acquired) > pages.available:
                return len(slots.resident)
            slots.load(acquired)
            slots.pin(acquired.digest, 0)

    def tokens_beside(self, adapters, mix):
        """How many tokens sequences can hold beside so many adapters; None: those do not fit."""
        pages, cache, slots = self._owners(self._pages)
        for number, rank in zip(range(adapters), cycle(mix)):
            acquired = self._acquired(number, rank)
            if slots.page_count(acquired.digest, acquired) > pages.available:
                return None
            slots.load(acquired)
            slots.pin(acquired.digest, 0)
        return self._fill(pages, cache)

    def tokens_beside_slots(self, slots):
        """The same if so many slots of ``RANK_MAX`` are set apart, whatever lies in them."""
        _, _, table = self._owners(self._pages)
        left = self._pages - slots * table.page_count("", self._acquired("", RANK_MAX))
        if left < 1:
            return None
        pages, cache, _ = self._owners(left)
        return self._fill(pages, cache)

    def _fill(self, pages, cache):
        holding = cache.hold("", None, [], pages.available * PAGE_TOKENS)
        return holding.count * PAGE_TOKENS

    def _owners(self, count):
        pages = Pages(count)
        slots = AdapterSlots(count, pages, page_granules=self._page_granules, policy="lru")
        return pages, PrefixCache(pages, PAGE_TOKENS, caching=True), slots

    def _acquired(self, number, rank):
        sizes = dict.fromkeys(MODULES, granules.Size(rank))
        size = granules.of_layer(sizes, self._base, self._base.shards(1))
        return Acquired(f"{number}", "", rank, 0, size)


def tables():
    """Yield two tables for each memory, with their titles."""
    for name, base, gib in MEMORIES:
        memory = Memory(base, gib)
        yield f"Adapters on the device beside tokens of KV: {name}", _adapters_table(memory)
        yield f"Tokens of KV beside adapters: {name}", _tokens_table(memory)


def _adapters_table(memory):
    """Slots are set apart before anything is known, or, in hindsight, as many as just fit."""
    fixed = {slots: memory.tokens_beside_slots(slots) for slots in SLOTS}
    rows = []
    for tokens in CONTEXTS:
        most = next(n for n in count() if (memory.tokens_beside_slots(n + 1) or -1) < tokens)
        found = [memory.adapters_beside(tokens, mix) for mix in MIXES.values()]
        rows.append(
            (
                f"{tokens:,}",
                *(slots if (room or -1) >= tokens else "-" for slots, room in fixed.items()),
                most if found[0] is not None else "-",
                *("-" if n is None else f"{n} ({n / most:.1f})" if most else n for n in found),
            )
        )
    header = (
        "tokens", *(f"{slots} slots" for slots in SLOTS), "slots in hindsight",
        *(f"pool, ranks {mix} (ratio)" for mix in MIXES),
    )  # fmt: skip
    return markdown(header, rows)


def _tokens_table(memory):
    rows = []
    for adapters in ADAPTERS:
        fixed = [memory.tokens_beside_slots(slots) for slots in SLOTS]
        hindsight = memory.tokens_beside_slots(adapters)
        found = [memory.tokens_beside(adapters, mix) for mix in MIXES.values()]
        rows.append(
            (
                adapters,
                *(
                    _tokens(room if adapters <= slots else None)
                    for slots, room in zip(SLOTS, fixed, strict=True)
                ),
                _tokens(hindsight),
                *(
                    _tokens(n) + (f" ({n / hindsight:.1f})" if n and hindsight else "")
                    for n in found
                ),
            )
        )
    header = (
        "adapters", *(f"{slots} slots" for slots in SLOTS), "slots in hindsight",
        *(f"pool, ranks {mix} (ratio)" for mix in MIXES),
    )  # fmt: skip
    return markdown(header, rows)


def _tokens(count):
    return "-" if count is None else f"{count:,}"
