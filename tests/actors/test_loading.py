"""Which adapters a scheduler has fetched and loaded, and when. A page holds two granules."""

import pytest

from tests.actors.scheduler_harness import Harness, ask, counters, loads, prompt
from tests.sim.fake_engine import generate
from weft.actors.scheduler.policy import LOADS_MAX
from weft.runtime.messages import Abort, Acquire, DeviceRoom, KeepOnDevice


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


@pytest.mark.parametrize("copy_steps", [0, 1, 5])
def test_an_adapter_is_copied_while_others_compute_and_used_when_it_is_there(copy_steps):
    harness = Harness(copy_steps=copy_steps)
    harness.generate("warm", prompt(5), max_tokens=20, stop_token_ids=[])
    harness.run_step()
    harness.generate("cold", prompt(6), adapter="x", max_tokens=3, stop_token_ids=[])
    harness.run()
    [loading] = [step for step in harness.sent_steps if step.loads]
    assert [join.adapters for join in loading.joins] == [[(loading.loads[0].slot, 1.0)]]
    [feeding] = [step for step in harness.sent_steps[loading.step :] if step.chunks]
    # One step is on its way while the answer comes that tells of the copy.
    assert feeding.step == loading.step + copy_steps + 2
    assert [chunk.tokens for chunk in feeding.chunks] == [prompt(6)]
    assert harness.output("cold") == generate("x", prompt(6), max_tokens=3, stop=())
    harness.assert_all_is_back()


def test_whoever_is_left_waits_for_a_copy_and_not_for_those_behind_it():
    harness = Harness(copy_steps=9)
    harness.generate("warm", prompt(5), max_tokens=4, stop_token_ids=[])
    harness.run_step()
    for label in "xy":
        harness.generate(label, prompt(6), adapter=label, max_tokens=12, stop_token_ids=[])
    harness.run()
    first, second = [step for step in harness.sent_steps[1:] if step.chunks]
    assert len(first.chunks) == len(second.chunks) == 1
    assert second.step > first.step + 1  # the engine asserts that nobody waited for the second
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
