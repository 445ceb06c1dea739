"""What a scheduler makes of it when its runners are gone, and others come."""

import pytest

from tests.actors.scheduler_harness import Harness
from tests.sim.fake_engine import FakeEngine, generate


def lose(harness, *, pages=64):
    """The runner dies, and another one comes with so many pages."""
    harness.steps.clear()
    harness._deliver(harness.scheduler.lost("runner0", harness.now_ns))
    harness.scheduler.check()
    harness.engine = FakeEngine(pages=pages, page_tokens=4, slots=8, rows=8)
    harness.receive("runner0", harness.engine.ready())


def run_steps(harness, count):
    for _ in range(count):
        assert harness.run_step()


def test_tokens_go_on_where_they_were():
    harness = Harness()
    for number in range(5):
        prompt = list(range(20, 23 + number))
        harness.generate(f"r{number}", prompt, adapter=(None, "a", "b")[number % 3], max_tokens=20)
    for steps in (1, 3, 8):
        run_steps(harness, steps)
        lose(harness)
    harness.run()
    for number in range(5):
        adapter = (None, "a", "b")[number % 3]
        expected = generate(adapter, list(range(20, 23 + number)), max_tokens=20)
        shown = expected[:-1] if expected[-1] == 2 else expected
        assert harness.output(f"r{number}") == shown
    harness.assert_all_is_back()


def test_who_ran_comes_before_who_waited_in_the_order_of_before():
    harness = Harness(max_num_seqs=2)
    for number in range(4):
        harness.generate(f"r{number}", [5, 6, 7], max_tokens=30)
    run_steps(harness, 4)
    lose(harness)
    waiting = harness.scheduler._waiting
    order = [sequence.request.generate.label for sequence in waiting.in_order(lambda s: 1)]
    assert order == ["r0", "r1", "r2", "r3"]
    harness.run()
    harness.assert_all_is_back()


def test_who_only_waits_for_a_last_token_waits_for_it_again():
    harness = Harness()
    harness.generate("r", [5, 6, 7], max_tokens=3)
    run_steps(harness, 2)
    while harness.advance():
        pass
    [sequence] = harness.scheduler._requests.sequences
    assert sequence.row is None
    lose(harness)
    harness.run()
    assert harness.output("r") == generate(None, [5, 6, 7], max_tokens=3)
    harness.assert_all_is_back()


def test_what_does_not_fit_into_less_memory_ends_with_what_there_is():
    harness = Harness(pages=16)
    harness.generate("long", list(range(20, 40)), max_tokens=40)
    harness.generate("longest", list(range(20, 60)), max_tokens=20)
    harness.generate("short", [5, 6], max_tokens=9)
    run_steps(harness, 14)
    known = len(harness.output("long"))
    assert known > 4
    lose(harness, pages=6)
    harness.run()
    assert harness.end("long").reason == "length"
    assert len(harness.output("long")) == known
    assert harness.end("longest").reason == "error"
    assert "does not fit" in harness.end("longest").error
    assert harness.output("short") == generate(None, [5, 6], max_tokens=9)
    harness.assert_all_is_back()


def test_an_adapter_that_was_on_its_way_to_the_device_is_still_held_for_the_next():
    harness = Harness()
    harness.generate("r", [5, 6, 7], adapter="a", max_tokens=5)
    while harness.advance():
        pass
    assert harness.pinned_in_host == {"a": 1}
    lose(harness)
    assert harness.pinned_in_host == {"a": 1}
    harness.run()
    assert harness.output("r") == generate("a", [5, 6, 7], max_tokens=5)
    harness.assert_all_is_back()


def test_an_adapter_that_nobody_waits_for_is_let_go_while_runners_are_away():
    harness = Harness()
    harness.generate("r", [5, 6, 7], adapter="a", max_tokens=5)
    while harness.advance():
        pass
    harness.scheduler.lost("runner0", harness.now_ns)
    [request] = harness.scheduler._requests
    harness.scheduler._cancel([request])
    while harness.advance():
        pass
    assert harness.pinned_in_host == {"a": 0}


def test_a_suspect_gets_its_adapter_though_others_hold_all_room_in_host_memory():
    harness = Harness(max_loaded_loras=2, max_loras_per_batch=1)
    counts = {"r": 30} | dict.fromkeys("abcdef", 5)
    for label, count in counts.items():
        harness.generate(label, [5, 6, 7], adapter=label, max_tokens=count)
        run_steps(harness, 1)
    sequence = harness.scheduler._requests.find("c", "r").sequences[0]
    for _ in range(2):
        while not sequence.in_flight:
            assert harness.advance() or harness.run_step()
        held = {adapter for adapter, pins in harness.pinned_in_host.items() if pins}
        lose(harness)
    assert harness.scheduler._suspects.alone is sequence.request
    assert len(held) == 2
    assert "r" not in held
    harness.run()
    for label, count in counts.items():
        expected = generate(label, [5, 6, 7], max_tokens=count)
        assert harness.output(label) == (expected[:-1] if expected[-1] == 2 else expected)
    harness.assert_all_is_back()


@pytest.mark.parametrize("deaths", [1, 2])
def test_who_was_not_computed_is_not_in_doubt(deaths):
    harness = Harness(max_num_seqs=1)
    harness.generate("running", [5, 6, 7], max_tokens=30)
    harness.generate("waiting", [5, 6, 7], max_tokens=30)
    run_steps(harness, 3)
    for _ in range(deaths):
        while harness.advance():
            pass
        lose(harness)
    doubts = [request.generate.label for request in harness.scheduler._suspects._doubts]
    assert doubts == ["running"]
    harness.run()
    harness.assert_all_is_back()
