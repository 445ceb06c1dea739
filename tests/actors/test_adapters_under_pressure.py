"""Adapters of all sizes, few pages, cancellations, and a store that answers when it likes."""

import random

import pytest

from tests.actors.scheduler_harness import Harness, uses
from tests.sim.fake_engine import computed_by, generate
from weft.actors.scheduler.policy import NeverFits, output_max
from weft.runtime.messages import Abort, KeepOnDevice

REQUESTS = 50
PAGE_TOKENS = 4
PAGE_GRANULES = 2


class Crowd:
    """One scheduler, and what was asked of it."""

    def __init__(self, seed):
        self.rng = rng = random.Random(seed)
        self.granules = {
            f"x{number}": rng.randint(1, 24) for number in range(rng.choice([2, 6, 40]))
        }
        self.pages = rng.choice([6, 9, 14, 24, 60])
        rows, adapters = rng.choice([1, 2, 5, 8]), rng.choice([1, 2, 3, 8])
        is_chunked = rng.random() < 0.7
        self.harness = Harness(
            pages=self.pages,
            granules=self.granules,
            block_size=PAGE_TOKENS,
            max_model_len=40,
            max_num_seqs=rows,
            max_num_batched_tokens=rng.choice([8, 12, 32]) if is_chunked else 40 + rows,
            enable_chunked_prefill=is_chunked,
            enable_prefix_caching=rng.random() < 0.8,
            max_loras_per_batch=adapters,
            max_loaded_loras=adapters + rng.choice([0, 1, 5, 30]),
            lora_eviction_policy=rng.choice(["lru", "fifo"]),
        )
        self.harness.holds_acquires = rng.random() < 0.5
        self.asked = {}
        self.cancelled = set()

    def play(self):
        rng, harness = self.rng, self.harness
        for number in range(REQUESTS):
            label, adapter = f"r{number}", self._some_adapters()
            start = 31 * rng.randint(0, 3)
            prompt = list(range(start, start + rng.randint(1, 24)))
            limit, choices = rng.randint(1, 16), rng.choice([1, 1, 1, 2])
            self.asked[label] = (adapter, prompt, limit, choices)
            harness.generate(
                label, prompt, adapter=adapter, max_tokens=limit, choices=choices, stop_token_ids=[]
            )
            for _ in range(rng.choice([0, 0, 1, 3])):
                harness.run_step()
                self._answer_some()
            if rng.random() < 0.1:
                harness.receive("adapters", KeepOnDevice(self._that_fit()))
            if rng.random() < 0.15:
                victim = rng.choice(list(self.asked))
                self.cancelled.add(victim)
                harness.receive("tokenizer", Abort("c", victim))
        harness.run()
        while harness.withheld:
            harness.acquired(harness.withheld.pop(0).digest)
            harness.run()
        harness.receive("adapters", KeepOnDevice([]))

    def _that_fit(self):
        """Adapters that the store may pin to the device."""
        room, chosen, pages = self.harness.device_room, [], 0
        for digest in self.rng.sample(list(self.granules), min(3, len(self.granules))):
            pages += -(-self.granules[digest] // PAGE_GRANULES)
            if len(chosen) < room.adapters_max and pages <= room.pages_max:
                chosen.append(digest)
        return chosen

    def _some_adapters(self):
        """None, one, or several with scales: as many as a batch takes."""
        most = min(len(self.granules), self.harness.config.row_loras_max)
        several = self.rng.sample(list(self.granules), self.rng.randint(1, most))
        scales = {adapter: self.rng.choice((1.0, 0.5)) for adapter in several}
        return self.rng.choice([None, scales, self.rng.choice(list(self.granules))])

    def _answer_some(self):
        """The store answers in any order, and not always at once."""
        withheld = self.harness.withheld
        while withheld and self.rng.random() < 0.7:
            self.harness.acquired(withheld.pop(self.rng.randrange(len(withheld))).digest)

    def check(self):
        """Assert that everybody got every token, as far as memory reaches beside the adapter."""
        for label, (adapter, prompt, limit, choices) in self.asked.items():
            scales = {use.digest: use.scale for use in uses(adapter)}
            adapter_pages = sum(-(-self.granules[each] // PAGE_GRANULES) for each in scales)
            try:
                room = output_max(
                    len(prompt), adapter_pages, pages=self.pages, page_tokens=PAGE_TOKENS
                )
            except NeverFits:
                room = 0
            for choice in range(choices):
                output, end = self.harness.output(label, choice), self.harness.end(label, choice)
                expected = generate(
                    computed_by(scales.items()),
                    prompt,
                    max_tokens=min(limit, room),
                    choice=choice,
                    stop=(),
                )
                if label in self.cancelled:
                    assert output == expected[: len(output)]
                else:
                    assert output == expected, (label, end)
                    assert (end.error is None) == (room > 0)
        self.harness.assert_all_is_back()


def play(seeds):
    totals = dict.fromkeys(("preemptions_total", "adapter_evictions_total"), 0)
    for seed in seeds:
        crowd = Crowd(seed)
        crowd.play()
        crowd.check()
        for name in totals:
            totals[name] += crowd.harness.scheduler._counters()[name]
    assert min(totals.values()) > 2 * len(seeds), totals  # or this would show little


def test_everybody_gets_every_token_however_small_memory_is():
    play(range(20))


@pytest.mark.slow
def test_everybody_gets_every_token_in_many_more_worlds():
    play(range(20, 300))
