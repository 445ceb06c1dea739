"""How the scheduler divides pages between adapters and sequences. A page holds two granules."""

import pytest

from tests.actors.scheduler_harness import Harness
from tests.sim.fake_engine import generate
from weft.actors.scheduler.policy import LOADS_MAX
from weft.runtime.messages import Abort, Acquire, DeviceRoom, KeepOnDevice


def prompt(length, salt=0):
    return [3 + (salt * 7919 + i * 31) % 900 for i in range(length)]


def ask(harness, label, adapter, *, length=5, max_tokens=4, **options):
    """Have one request answered, with nothing else running."""
    harness.generate(label, prompt(length), adapter=adapter, max_tokens=max_tokens, **options)
    harness.run()
    assert harness.end(label).error is None


def loads(harness):
    return [load.digest for step in harness.sent_steps for load in step.loads]


def counters(harness):
    return harness.scheduler._counters()


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


def test_host_memory_keeps_an_adapter_until_the_step_that_loads_it_has_been_answered():
    harness = Harness()
    harness.generate("a", prompt(5), adapter="x", max_tokens=6)
    while harness.advance():
        pass
    assert loads(harness) == ["x"]
    assert harness.pinned_in_host == {"x": 1}
    harness.receive("tokenizer", Abort("c", "a"))
    harness.advance()
    assert harness.pinned_in_host == {"x": 1}  # the runner has not read it yet
    harness.run()
    assert harness.pinned_in_host == {"x": 0}
    assert counters(harness)["adapters_resident"] == 1
    harness.assert_all_is_back()


def test_host_memory_does_not_keep_what_the_device_has_though_others_wait_for_it():
    harness = Harness(max_num_seqs=1)
    for label in "ab":
        harness.generate(label, prompt(5), adapter="x", max_tokens=20, stop_token_ids=[])
    for _ in range(4):
        harness.run_step()
    assert counters(harness)["waiting"] == 1
    assert harness.pinned_in_host == {"x": 0}
    harness.run()
    assert loads(harness) == ["x"]
    harness.assert_all_is_back()


def test_an_adapter_that_was_evicted_while_it_is_waited_for_is_fetched_again():
    harness = Harness(pages=12, max_num_seqs=1, enable_prefix_caching=False, granules={"x": 8})
    ask(harness, "a", "x")
    harness.generate("long", prompt(5), max_tokens=40, stop_token_ids=[])
    harness.generate("b", prompt(5), adapter="x", max_tokens=3)
    harness.holds_acquires = True
    harness.run()
    assert harness.end("long").output_tokens == 40
    assert harness.withheld == [Acquire("x")]
    harness.acquired("x")
    harness.run()
    assert harness.end("b").error is None
    assert loads(harness) == ["x", "x"]
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


def test_an_adapter_is_copied_while_others_compute_and_used_in_the_next_step():
    harness = Harness()
    harness.generate("warm", prompt(5), max_tokens=20, stop_token_ids=[])
    harness.run_step()
    harness.generate("cold", prompt(6), adapter="x", max_tokens=3, stop_token_ids=[])
    harness.run()
    [loading] = [step for step in harness.sent_steps if step.loads]
    assert [join.adapters for join in loading.joins] == [[(loading.loads[0].slot, 1.0)]]
    assert loading.chunks == []
    following = harness.sent_steps[loading.step + 1]
    assert [chunk.tokens for chunk in following.chunks] == [prompt(6)]
    assert harness.output("cold") == generate("x", prompt(6), max_tokens=3, stop=())
    harness.assert_all_is_back()


def test_an_adapter_is_used_at_once_when_there_is_nothing_else_to_compute():
    harness = Harness()
    ask(harness, "a", "x")
    assert [len(step.chunks) for step in harness.sent_steps if step.loads] == [1]


def test_many_cold_adapters_are_loaded_a_few_in_a_step():
    names = [f"x{number}" for number in range(8)]
    harness = Harness(max_loras_per_batch=8, max_num_batched_tokens=64)
    for name in names:
        harness.generate(name, prompt(5), adapter=name, max_tokens=9, stop_token_ids=[])
    harness.run()
    counts = [len(step.loads) for step in harness.sent_steps if step.loads]
    assert counts == [LOADS_MAX, LOADS_MAX]
    for name in names:
        assert harness.output(name) == generate(name, prompt(5), max_tokens=9, stop=())
    harness.assert_all_is_back()


def test_one_that_is_cancelled_before_its_first_tokens_leaves_nothing():
    harness = Harness()
    harness.generate("warm", prompt(5), max_tokens=20, stop_token_ids=[])
    harness.run_step()
    harness.generate("cold", prompt(6), adapter="x", max_tokens=3)
    while not any(step.loads for step in harness.sent_steps):
        harness.run_step()
    harness.receive("tokenizer", Abort("c", "cold"))
    harness.run()
    assert harness.output("cold") == []
    assert harness.end("cold").reason == "cancelled"
    harness.assert_all_is_back()


def test_adapters_of_those_that_wait_are_fetched_and_loaded_where_nobody_is():
    harness = Harness(max_num_seqs=1)
    harness.generate("runs", prompt(5), max_tokens=12, stop_token_ids=[])
    harness.run_step()
    for name in "xyz":
        harness.generate(name, prompt(6), adapter=name, max_tokens=2)
    for _ in range(4):
        harness.run_step()
    assert harness.end_of("runs") is None
    assert harness.scheduler._composer.slots.resident == {"x", "y", "z"}
    assert harness.pinned_in_host == {"x": 0, "y": 0, "z": 0}
    harness.run()
    assert loads(harness) == ["x", "y", "z"]
    harness.assert_all_is_back()


def test_no_idle_adapter_or_prefix_makes_way_for_one_that_is_only_waited_for():
    harness = Harness(max_num_seqs=1, pages=16, granules={"x": 8, "y": 8})
    ask(harness, "a", "x", length=9)  # leaves 4 pages of its own and 2 of its prompt
    harness.generate("runs", prompt(25), max_tokens=11, stop_token_ids=[])  # 7 pages, later 9
    harness.run_step()
    harness.generate("b", prompt(6), adapter="y", max_tokens=2)
    while harness.end_of("runs") is None:
        assert "x" in harness.scheduler._composer.slots.resident
        assert loads(harness) == ["x"]
        harness.run_step()
    harness.run()
    assert loads(harness) == ["x", "y"]
    harness.assert_all_is_back()


def test_half_of_host_memory_is_left_to_what_can_start_now():
    harness = Harness(max_num_seqs=1, max_loaded_loras=6, pages=8, granules={})
    harness.generate("runs", prompt(5), max_tokens=20, stop_token_ids=[])
    harness.run_step()
    harness.holds_acquires = True
    for number in range(6):
        harness.generate(f"{number}", prompt(6), adapter=f"x{number}", max_tokens=2)
    for _ in range(3):
        harness.run_step()
    assert harness.withheld == [Acquire(f"x{number}") for number in range(3)]
    harness.holds_acquires = False
    for number in range(3):
        harness.acquired(f"x{number}")
    harness.run()
    assert all(harness.end(f"{number}").error is None for number in range(6))
    harness.assert_all_is_back()


def keep(harness, *digests):
    """Pin adapters to the device, as the store tells the scheduler."""
    harness.receive("adapters", KeepOnDevice(list(digests)))
    harness.run()


def test_what_is_pinned_to_the_device_comes_though_nobody_asks_for_it():
    harness = Harness(granules={"x": 8})
    keep(harness, "x")
    assert loads(harness) == ["x"]
    assert counters(harness)["adapters_staying"] == 1
    assert counters(harness)["pages_adapters_idle"] == 0
    ask(harness, "a", "x")
    assert loads(harness) == ["x"]
    keep(harness)
    assert counters(harness)["pages_adapters_idle"] == 4
    harness.assert_all_is_back()


def test_there_is_room_for_what_a_batch_and_half_of_the_pages_can_spare():
    harness = Harness(pages=31, max_loras_per_batch=3, max_loaded_loras=8)
    assert harness.device_room == DeviceRoom(5, 15, 2)


def test_what_is_pinned_to_the_device_stays_while_others_are_preempted():
    harness = Harness(pages=24, granules={"x": 16}, enable_prefix_caching=False)
    keep(harness, "x")
    for number in range(6):
        harness.generate(f"r{number}", prompt(5, number), max_tokens=30, stop_token_ids=[])
    harness.run()
    assert counters(harness)["preemptions_total"] > 0
    assert (loads(harness), counters(harness)["adapters_resident"]) == (["x"], 1)
    for number in range(6):
        expected = generate(None, prompt(5, number), max_tokens=30, stop=())
        assert harness.output(f"r{number}") == expected


def test_what_is_pinned_to_the_device_gives_way_to_one_that_would_not_fit_even_alone():
    harness = Harness(pages=16, granules={"x": 16}, enable_prefix_caching=False)
    keep(harness, "x")
    harness.generate("long", prompt(5), max_tokens=43, stop_token_ids=[])  # 12 pages of 8
    harness.run()
    assert harness.output("long") == generate(None, prompt(5), max_tokens=43, stop=())
    assert counters(harness)["preemptions_total"] == 0
    assert loads(harness) == ["x", "x"]  # it has come back
    assert counters(harness)["adapters_staying"] == 1
    harness.generate("wide", prompt(45), max_tokens=2, stop_token_ids=[])  # 12 pages at once
    harness.run()
    assert harness.end("wide").reason == "length"
    assert loads(harness) == ["x", "x", "x"]


def test_the_pages_of_what_is_pinned_to_the_device_are_not_asked_for_twice():
    """Who uses it needs room for itself alone, and gets all that is left."""
    harness = Harness(pages=16, granules={"x": 16}, enable_prefix_caching=False)
    keep(harness, "x")
    ask(harness, "a", "x", length=29, max_tokens=3)  # 8 pages
    assert loads(harness) == ["x"]
