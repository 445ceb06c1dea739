import random

import pytest

from tests.actors.scheduler_harness import GREEDY, Harness, prompt
from tests.sim.fake_engine import EOS, generate
from weft.actors.scheduler.policy import OVERTAKEN_MAX, ROTATE_STEPS
from weft.runtime.messages import (
    Abort,
    AcquireFailed,
    ClientGone,
    Generate,
    Inspection,
    StepDone,
    StopFound,
)


def shown(tokens):
    return tokens[:-1] if tokens and tokens[-1] == EOS else tokens


def test_a_request_runs_from_prompt_to_end():
    harness = Harness()
    harness.generate("a", prompt(6), max_tokens=5)
    harness.run()
    assert harness.output("a") == shown(generate(None, prompt(6), max_tokens=5))
    assert harness.end("a").reason == "length"
    assert harness.end("a").output_tokens == 5
    assert (harness.end("a").first_step, harness.end("a").last_step) == (0, 4)
    harness.assert_all_is_back()


def test_a_steady_decode_step_carries_nothing_but_its_number():
    harness = Harness(block_size=64)
    harness.generate("a", prompt(6), max_tokens=30)
    harness.run()
    steady = [s for s in harness.sent_steps if s.step not in (0,) and not s.leaves]
    assert len(steady) > 20
    for step in steady:
        assert (step.loads, step.joins, step.page_rows, step.chunks) == ([], [], [], [])


def test_the_next_step_is_sent_while_one_is_being_computed():
    harness = Harness()
    harness.generate("a", prompt(6))
    while harness.advance():
        pass
    assert [step.step for step in harness.steps] == [0, 1]
    assert len(harness.steps[0].chunks) == 1
    assert harness.steps[1].chunks == []  # decodes the token that nobody knows yet


def test_long_prompts_are_computed_in_chunks_beside_decodes():
    harness = Harness(max_num_batched_tokens=8, max_num_seqs=4)
    harness.generate("short", prompt(3), max_tokens=40)
    harness.run_step()
    harness.generate("long", prompt(40, 1), max_tokens=3)
    harness.run()
    sizes = [len(chunk.tokens) for step in harness.sent_steps for chunk in step.chunks]
    assert len(sizes) > 5
    assert max(sizes) <= 8
    assert harness.output("long") == shown(generate(None, prompt(40, 1), max_tokens=3))
    assert harness.output("short") == shown(generate(None, prompt(3), max_tokens=40))


def test_the_token_that_stops_is_counted_and_not_shown():
    harness = Harness()
    first = generate(None, prompt(6), max_tokens=4)
    harness.generate("a", prompt(6), max_tokens=8, stop_token_ids=[first[2]])
    harness.run()
    assert harness.output("a") == first[:2]
    assert (harness.end("a").reason, harness.end("a").output_tokens) == ("stop", 3)


def test_a_stop_string_ends_a_sequence_where_it_was_found():
    harness = Harness()
    harness.generate("a", prompt(6), max_tokens=50)
    for _ in range(4):
        harness.run_step()
    harness.receive("detokenizer", StopFound(harness.begun["a"].first_sequence, 2))
    harness.run()
    assert (harness.end("a").reason, harness.end("a").output_tokens) == ("stop", 2)
    harness.assert_all_is_back()


def test_a_cancelled_request_gives_everything_back_and_nothing_more_is_heard_of_it():
    harness = Harness()
    harness.generate("running", prompt(6), max_tokens=50, adapter="x")
    harness.run_step()
    harness.generate("new", prompt(6, 1), max_tokens=50)
    for label in ("running", "new", "unknown", "running"):
        harness.receive("tokenizer", Abort("c", label))
    harness.run()
    assert harness.end("running").reason == "cancelled"
    assert harness.end("new").reason == "cancelled"
    harness.assert_all_is_back()


def test_when_a_client_is_gone_only_its_requests_are_cancelled():
    harness = Harness()
    harness.generate("a", prompt(6), client="gone", max_tokens=20)
    harness.generate("b", prompt(6), client="here", max_tokens=20)
    harness.run_step()
    harness.receive("detokenizer", ClientGone("gone"))
    harness.run()
    assert harness.end("a").reason == "cancelled"
    assert harness.output("b") == shown(generate(None, prompt(6), max_tokens=20))
    harness.assert_all_is_back()


def test_preemption_changes_no_token():
    harness = Harness(pages=12, max_num_seqs=4)
    for i in range(6):
        harness.generate(f"r{i}", prompt(9, i), max_tokens=24, adapter="x" if i % 2 else None)
    harness.run()
    assert harness.scheduler._counters()["preemptions_total"] > 0
    for i in range(6):
        expected = generate("x" if i % 2 else None, prompt(9, i), max_tokens=24)
        assert harness.output(f"r{i}") == shown(expected)
    harness.assert_all_is_back()


def test_a_prompt_longer_than_all_pages_fails_alone():
    harness = Harness(pages=4)
    harness.generate("big", prompt(16))
    harness.generate("small", prompt(5), max_tokens=3)
    harness.run()
    assert harness.end("big").reason == "error"
    assert "raise kv_cache_memory_mib" in harness.end("big").error
    assert harness.end("small").reason in ("length", "stop")
    harness.assert_all_is_back()


def test_an_output_longer_than_all_pages_ends_by_length():
    harness = Harness(pages=4)
    harness.generate("a", prompt(5), max_tokens=100, stop_token_ids=[])
    harness.run()
    assert harness.end("a").reason == "length"
    assert harness.end("a").output_tokens == 16 - 5


def test_the_same_prompt_is_computed_once():
    harness = Harness()
    harness.generate("a", prompt(22), max_tokens=2)
    harness.run()
    harness.generate("b", prompt(22), max_tokens=2)
    harness.run()
    assert harness.end("a").cached_tokens == 0
    assert harness.end("b").cached_tokens == 20
    assert harness.output("b") == harness.output("a")


def test_two_adapters_never_share_pages_and_two_names_of_one_do():
    harness = Harness()
    harness.generate("a", prompt(22), adapter="x", model="one")
    harness.run()
    harness.generate("b", prompt(22), adapter="y", model="two")
    harness.generate("c", prompt(22), adapter="x", model="three")
    harness.generate("d", prompt(22))
    harness.generate("e", prompt(22), adapter="x", salt="tenant")
    harness.run()
    assert [harness.end(x).cached_tokens for x in "abcde"] == [0, 0, 20, 0, 0]
    metrics = {m.digest: m for m in harness.scheduler._metrics.report(frozenset())}
    assert metrics["x"].names == ["one", "three", "x"]


def test_choices_share_the_prompt():
    harness = Harness()
    harness.generate("a", prompt(22), choices=3, max_tokens=6)
    harness.run()
    for choice in range(3):
        expected = generate(None, prompt(22), max_tokens=6, choice=choice)
        assert harness.output("a", choice) == shown(expected)
    assert [harness.end("a", choice).cached_tokens for choice in range(3)] == [0, 20, 20]
    harness.assert_all_is_back()


def test_a_sequence_that_fails_is_alone_in_that():
    harness = Harness()
    harness.generate("bad", prompt(6), max_tokens=10)
    harness.generate("good", prompt(6, 1), max_tokens=10)
    while harness.advance():
        pass
    done = harness.engine.execute(harness.steps.popleft())
    bad_row = next(j.row for j in harness.sent_steps[0].joins if j.prompt_tokens == 6)
    assert bad_row == 0
    harness.receive("runner0", StepDone(done.step, done.tokens, failed=[0]))
    harness.run()
    assert harness.end("bad").reason == "error"
    assert harness.output("good") == shown(generate(None, prompt(6, 1), max_tokens=10))
    harness.assert_all_is_back()


def test_distinct_adapters_in_a_step_are_bounded_and_base_rows_cost_none():
    harness = Harness(max_loras_per_batch=2, max_num_seqs=8)
    for i in range(12):
        harness.generate(f"r{i}", prompt(5, i), adapter=f"x{i % 6}" if i % 3 else None)
    harness.run()
    assert harness.engine.distinct_adapters_max == 2
    for i in range(12):
        expected = generate(f"x{i % 6}" if i % 3 else None, prompt(5, i), max_tokens=8)
        assert harness.output(f"r{i}") == shown(expected)
    harness.assert_all_is_back()


def test_a_cold_adapter_is_not_starved_by_a_stream_of_warm_ones():
    harness = Harness(max_loras_per_batch=1, max_num_seqs=8, pages=256, max_queued_requests=4096)
    count = 0

    def feed_warm():
        nonlocal count
        harness.generate(f"w{count}", prompt(5, count), adapter="warm", max_tokens=6)
        count += 1

    for _ in range(16):
        feed_warm()
    harness.run_step()
    harness.generate("cold", prompt(5), adapter="cold", max_tokens=4)
    while harness.begun.get("cold") is None or not harness.ends.get(
        harness.begun["cold"].first_sequence
    ):
        feed_warm()
        harness.run_step()
        assert count < OVERTAKEN_MAX + ROTATE_STEPS + 64, "the cold adapter starves"
    assert harness.output("cold") == shown(generate("cold", prompt(5), max_tokens=4))


def test_an_endless_answer_gives_up_its_slot_to_a_starving_adapter():
    harness = Harness(
        max_loras_per_batch=1, max_num_seqs=8, pages=1024, block_size=16, max_queued_requests=4096
    )
    harness.generate("endless", prompt(5), adapter="warm", max_tokens=2000, stop_token_ids=[])
    harness.run_step()
    harness.generate("cold", prompt(5), adapter="cold", max_tokens=4)
    for i in range(OVERTAKEN_MAX + 1):  # each overtakes the cold one
        harness.generate(f"w{i}", prompt(5, i), adapter="warm", max_tokens=1)
        harness.run_step()
    for _ in range(ROTATE_STEPS + 40):
        harness.run_step()
    assert harness.end("cold").reason in ("length", "stop")
    harness.run()
    expected = generate("warm", prompt(5), max_tokens=2000, stop=())
    assert harness.output("endless") == expected
    harness.assert_all_is_back()


def test_an_adapter_that_cannot_be_had_fails_its_requests_only():
    harness = Harness()
    harness.holds_acquires = True
    harness.generate("a", prompt(5), adapter="broken")
    harness.generate("b", prompt(5), max_tokens=3)
    harness.run()
    assert [message.digest for message in harness.withheld] == ["broken"]
    harness.receive("adapters", AcquireFailed("broken", "its file is gone"))
    harness.run()
    assert "its file is gone" in harness.end("a").error
    assert harness.output("b") == shown(generate(None, prompt(5), max_tokens=3))
    harness.assert_all_is_back()


def test_an_adapter_whose_last_waiter_was_cancelled_is_released():
    harness = Harness()
    harness.holds_acquires = True
    harness.generate("a", prompt(5), adapter="x")
    harness.run()
    harness.receive("tokenizer", Abort("c", "a"))
    harness.acquired("x")
    harness.run()
    assert harness.pinned_in_host == {"x": 0}
    harness.assert_all_is_back()


def test_a_full_queue_rejects_with_a_time_to_come_back():
    harness = Harness(max_queued_requests=2, max_num_seqs=1)
    for i in range(5):
        harness.generate(f"r{i}", prompt(5, i), max_tokens=3)
    assert {r.refused.code for r in harness.rejected} == {"queue_full"}
    assert all(r.refused.retry_after_s for r in harness.rejected)
    harness.run()
    harness.assert_all_is_back()
    assert len(harness.ends) + len(harness.rejected) == 5


def test_choices_that_could_never_wait_are_refused_for_good():
    harness = Harness(max_queued_requests=2)
    harness.generate("many", prompt(5), choices=3)
    [rejected] = harness.rejected
    assert (rejected.refused.code, rejected.refused.param) == ("invalid_value", "n")
    assert rejected.refused.retry_after_s is None


def test_a_draining_scheduler_serves_what_the_tokenizer_let_in_before_it_left():
    harness = Harness()
    harness.generate("a", prompt(5), max_tokens=4)
    harness.scheduler.drain()
    harness.generate("late", prompt(5))
    assert harness.rejected == []
    assert not harness.scheduler.is_idle
    harness.run()
    assert harness.end("a").output_tokens > 0
    assert harness.end("late").output_tokens > 0
    assert harness.scheduler.is_idle


def test_a_label_in_use_is_rejected():
    harness = Harness()
    harness.generate("a", prompt(5))
    harness.generate("a", prompt(5))
    assert [r.refused.code for r in harness.rejected] == ["duplicate_label"]


def test_without_room_at_the_detokenizer_no_step_is_sent():
    harness = Harness()
    harness.room = 1
    harness.generate("a", prompt(5))
    harness.run()
    assert harness.sent_steps == []
    harness.room = 10
    harness.run()
    assert harness.end("a")


def test_penalties_see_every_token_after_preemption():
    sampling = GREEDY.__class__(**{**_fields(GREEDY), "repetition_penalty": 1.1})
    harness = Harness(pages=8, max_num_seqs=3)
    for i in range(4):  # the fake model asserts that its KV and its history agree
        harness.generate(f"r{i}", prompt(7, i), max_tokens=16, sampling=sampling)
    harness.run()
    assert harness.scheduler._counters()["preemptions_total"] > 0


def test_an_inspection_collects_counters_on_its_way():
    harness = Harness()
    harness.generate("a", prompt(5), adapter="x", max_tokens=4)
    harness.run()
    harness.receive("adapters", Inspection("c", "i", {"adapters": {"known": 1}}))
    harness.advance()
    (inspection,) = harness.inspections
    assert set(inspection.sections) == {"adapters", "scheduler"}
    (metrics,) = inspection.adapters
    assert (metrics.digest, metrics.requests, metrics.resident) == ("x", 1, True)
    assert metrics.output_tokens == harness.end("a").output_tokens
    assert sum(metrics.queue_s) == sum(metrics.first_token_s) == 1


def hits_of(harness):
    """By adapter: requests that found it on the device, in host memory, on disk."""
    metrics = harness.scheduler._metrics.report(frozenset())
    return {adapter.digest: adapter.hits for adapter in metrics}


def test_a_request_is_counted_by_where_its_adapter_lay():
    harness = Harness(max_loras_per_batch=1, max_loaded_loras=1)
    for number, name in enumerate(("x", "x", "y", "x", None)):
        harness.generate(f"r{number}", prompt(5, number), adapter=name, max_tokens=4)
        harness.run()
    assert hits_of(harness) == {"x": [1, 1, 1], "y": [0, 0, 1], None: [0, 0, 0]}


def test_all_who_wait_for_what_is_read_are_counted_as_waiting_for_the_disk():
    harness = Harness()
    harness.holds_acquires = True
    for number in range(3):
        harness.generate(f"r{number}", prompt(5, number), adapter="x", max_tokens=4)
    harness.advance()
    harness.acquired("x")
    harness.run()
    assert hits_of(harness) == {"x": [0, 0, 3]}


def test_requests_that_run_and_that_wait_are_told_apart():
    harness = Harness(max_num_seqs=2)
    for number in range(3):
        harness.generate(f"r{number}", prompt(5, number), max_tokens=4)
    harness.advance()
    report = harness.scheduler._metrics.report(frozenset(), harness.scheduler._requests)
    assert [(base.running, base.waiting) for base in report] == [(2, 1)]


def test_an_answer_to_no_step_is_a_bug():
    with pytest.raises(AssertionError, match="none was sent"):
        Harness().receive("runner0", StepDone(0, []))


def test_a_request_without_a_prompt_is_no_message():
    with pytest.raises(ValueError, match="prompt is empty"):
        Generate("id", "c", "l", "m", [], [], "", 1, 1, [], GREEDY)


def _fields(struct):
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


@pytest.mark.parametrize("seed", range(12))
def test_a_long_random_run_gets_every_token_right(seed):
    rng = random.Random(seed)
    harness = Harness(
        pages=rng.choice([15, 20, 40]),  # the longest with the largest adapter takes 15
        max_loras_per_batch=rng.choice([1, 2, 3]),
        max_loaded_loras=rng.choice([3, 4, 8]),
        granules={name: 1 + 2 * size for size, name in enumerate("xyzwv")},
        max_num_seqs=rng.choice([2, 5, 8]),
        max_num_batched_tokens=rng.choice([8, 32]),
        enable_prefix_caching=rng.random() < 0.8,
        lora_eviction_policy=rng.choice(["lru", "fifo"]),
    )
    expected, cancelled = {}, set()
    for number in range(60):
        label = f"r{number}"
        adapter = rng.choice([None, "x", "y", "z", "w", "v"])
        tokens = prompt(rng.randint(1, 24), rng.randint(0, 3))
        limit, choices = rng.randint(1, 14), rng.choice([1, 1, 1, 3])
        harness.generate(label, tokens, adapter=adapter, max_tokens=limit, choices=choices)
        expected[label] = [
            generate(adapter, tokens, max_tokens=limit, choice=choice) for choice in range(choices)
        ]
        for _ in range(rng.choice([0, 0, 1, 3])):
            harness.run_step()
        if rng.random() < 0.15:
            victim = rng.choice(list(expected))
            cancelled.add(victim)
            harness.receive("tokenizer", Abort("c", victim))
    harness.run(20_000)
    for label, choices in expected.items():
        for choice, tokens in enumerate(choices):
            if label in cancelled:
                output = harness.output(label, choice)
                assert output == shown(tokens)[: len(output)]
            else:
                assert harness.output(label, choice) == shown(tokens), label
    harness.assert_all_is_back()
