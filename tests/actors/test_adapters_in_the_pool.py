"""How the scheduler divides pages between adapters and sequences. A page holds two granules."""

import pytest

from tests.actors.scheduler_harness import Harness, ask, counters, loads, prompt
from tests.sim.fake_engine import generate
from weft.runtime.messages import Abort


def test_many_more_adapters_stay_on_the_device_than_may_run_at_once():
    harness = Harness(max_loras_per_batch=1, max_loaded_loras=20, pages=64)
    for name in 2 * [f"x{i}" for i in range(20)]:
        ask(harness, f"{name}-{len(harness.begun)}", name)
    assert len(loads(harness)) == 20
    assert counters(harness)["adapters_resident"] == 20
    assert harness.engine.distinct_adapters_max == 1
    harness.assert_all_is_back()


def test_idle_adapters_make_room_for_a_growing_sequence_and_nobody_is_preempted():
    harness = Harness(pages=16, enable_prefix_caching=False, granules={"x": 8, "y": 8})
    ask(harness, "a", "x")
    ask(harness, "b", "y")
    assert counters(harness)["pages_adapters"] == 8
    harness.generate("long", prompt(5), max_tokens=43, stop_token_ids=[])  # 12 pages
    harness.run()
    assert harness.output("long") == generate(None, prompt(5), max_tokens=43, stop=())
    assert counters(harness)["adapters_resident"] == 1
    assert counters(harness)["adapter_evictions_total"] == 1
    assert counters(harness)["preemptions_total"] == 0
    ask(harness, "c", "y")  # the one used last is still there
    assert loads(harness) == ["x", "y"]


@pytest.mark.parametrize(("policy", "left"), [("lru", "x"), ("fifo", "y")])
def test_the_policy_says_which_idle_adapter_goes(policy, left):
    harness = Harness(
        pages=16, enable_prefix_caching=False, lora_eviction_policy=policy,
        granules={"x": 8, "y": 8},
    )  # fmt: skip
    for number, name in enumerate("xyx"):
        ask(harness, f"{number}", name)
    ask(harness, "long", None, max_tokens=43, stop_token_ids=[])
    assert harness.scheduler._composer.slots.resident == {left}


def test_cached_prefixes_and_adapters_leave_in_the_order_in_which_they_were_used():
    harness = Harness(pages=16, granules={"x": 8})
    ask(harness, "old", None, length=17, max_tokens=1)  # four whole pages stay
    ask(harness, "a", "x", length=3, max_tokens=1)
    ask(harness, "new", None, length=18, max_tokens=1, salt="other")
    assert [counters(harness)[f"pages_{of}"] for of in ("free", "cached", "adapters")] == [4, 8, 4]
    ask(harness, "b", None, length=30, max_tokens=1, salt="third")  # 8 pages: the oldest 4 go
    assert harness.scheduler._composer.slots.resident == {"x"}
    ask(harness, "c", None, length=6, max_tokens=1, salt="fourth")  # 1 page was left
    assert harness.scheduler._composer.slots.resident == set()
    ask(harness, "again", None, length=18, max_tokens=1, salt="other")
    assert harness.end("again").cached_tokens == 16


def test_a_waiting_adapter_takes_the_place_of_idle_ones_as_soon_as_there_is_room():
    harness = Harness(pages=12, granules={"x": 8, "y": 8, "big": 16}, max_num_seqs=4)
    ask(harness, "a", "x")
    ask(harness, "b", "y")
    ask(harness, "c", "big")
    assert harness.scheduler._composer.slots.resident >= {"big"}
    assert counters(harness)["adapter_evictions_total"] > 0
    harness.assert_all_is_back()


def test_sequences_that_start_together_do_not_evict_each_others_adapters():
    harness = Harness(
        pages=16, enable_prefix_caching=False, max_num_batched_tokens=64,
        granules={"x": 8, "y": 8, "z": 14},
    )  # fmt: skip
    ask(harness, "a", "x")  # now the first to be evicted
    ask(harness, "b", "y")
    harness.generate("running", prompt(5), max_tokens=60, stop_token_ids=[])
    harness.generate("new", prompt(3), adapter="z", max_tokens=2)  # has to be fetched
    harness.generate("large", prompt(60), max_tokens=2)  # does not fit: nobody passes it
    harness.generate("old", prompt(3), adapter="x", max_tokens=2)
    harness.advance()
    harness.receive("tokenizer", Abort("c", "large"))
    harness.run()
    assert loads(harness) == ["x", "y", "z"]  # z took y's pages, not those of x
    [together] = [step for step in harness.sent_steps if len(step.joins) == 2]
    assert len(together.loads) == 1
    harness.assert_all_is_back()


def test_an_adapter_that_leaves_no_room_says_which_option_to_raise():
    harness = Harness(pages=4, granules={"huge": 8, "wide": 4})
    harness.generate("a", prompt(3), adapter="huge")
    harness.generate("b", prompt(8), adapter="wide")
    harness.generate("c", prompt(8), max_tokens=2)
    harness.run()
    assert "adapters take 4 pages and memory has 4" in harness.end("a").error
    assert "raise kv_cache_memory_mib" in harness.end("a").error
    assert "8 tokens does not fit: memory has 4 pages of 4 tokens, of which adapters take 2" in (
        harness.end("b").error
    )
    assert harness.end("c").output_tokens == 2
    harness.assert_all_is_back()


def test_what_cannot_fit_is_told_so_also_when_its_adapter_is_known():
    harness = Harness(pages=4, granules={"wide": 4})
    ask(harness, "a", "wide", length=3)
    harness.generate("b", prompt(8), adapter="wide")
    harness.run()
    assert "of which adapters take 2" in harness.end("b").error


def test_an_answer_ends_where_memory_ends_beside_its_adapter():
    harness = Harness(pages=8, granules={"wide": 8})
    ask(harness, "a", "wide", max_tokens=100, stop_token_ids=[])
    assert (harness.end("a").reason, harness.end("a").output_tokens) == ("length", 16 - 5)
    harness.assert_all_is_back()


def test_a_preempted_answer_is_not_cut_when_its_adapter_comes_back():
    """Its size is learnt anew then; the room is for prompt and answer, not for what is left."""
    harness = Harness(pages=12, max_num_seqs=4, granules={"x": 8, "y": 8})
    expected = {}
    for label, adapter in {"a": None, "b": "x", "c": "y"}.items():
        expected[label] = generate(adapter, prompt(5), max_tokens=27, stop=())
        harness.generate(
            label, prompt(5), adapter=adapter, max_tokens=27, stop_token_ids=[]
        )  # 8 pages, beside an adapter's 4
    harness.run()
    assert counters(harness)["preemptions_total"] > 0
    assert len(loads(harness)) > 2, "no adapter had to come back"
    for label, tokens in expected.items():
        assert harness.output(label) == tokens
    harness.assert_all_is_back()


def test_pages_are_counted_by_their_owners():
    harness = Harness(pages=32, granules={"x": 8, "y": 6})
    ask(harness, "a", "x", length=9)
    harness.generate("b", prompt(9), adapter="y", max_tokens=20, stop_token_ids=[])
    harness.run_step()
    found = counters(harness)
    assert found["pages_adapters"] == 4 + 3
    assert found["pages_adapters_idle"] == 4
    assert found["pages_sequences"] == 3
    assert found["pages_cached"] >= 2
    owners = ("free", "sequences", "cached", "adapters")
    assert sum(found[f"pages_{owner}"] for owner in owners) == found["pages"] == 32
