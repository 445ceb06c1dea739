"""Requests with several adapters, in the scheduler: all of them or none, and nobody starves."""

import pytest

from tests.actors.scheduler_harness import Harness, prompt
from tests.sim.fake_engine import EOS, computed_by, generate
from weft.actors.scheduler.policy import OVERTAKEN_MAX, ROTATE_STEPS
from weft.runtime.config import Limits
from weft.runtime.messages import Abort, AcquireFailed, Retire, Retired


def expected(scales, tokens, **options):
    output = generate(computed_by(sorted(scales.items())), tokens, **options)
    return output[:-1] if output[-1] == EOS else output


def of(names, scale=1.0):
    return dict.fromkeys(names, scale)


def test_sums_single_adapters_and_the_base_share_a_batch():
    harness = Harness(max_loras_per_batch=3, max_num_seqs=16)
    asked = [of("xy"), of("x"), of("xz", 0.5), {"x": 2.0}, {}, of("xyz"), of("y")]
    for i, scales in enumerate(asked):
        harness.generate(f"r{i}", prompt(5, i), adapter=scales, max_tokens=9, stop_token_ids=[])
    harness.run()
    for i, scales in enumerate(asked):
        assert harness.output(f"r{i}") == expected(scales, prompt(5, i), max_tokens=9, stop=())
    assert harness.engine.distinct_adapters_max == 3
    harness.assert_all_is_back()


def test_no_more_adapters_run_at_once_than_a_batch_takes():
    harness = Harness(max_loras_per_batch=3, max_num_seqs=16)
    for i, names in enumerate(["ab", "bc", "cd", "de", "abc", "ef"]):
        harness.generate(f"r{i}", prompt(5, i), adapter=of(names), max_tokens=9)
    harness.run()
    assert harness.engine.distinct_adapters_max == 3
    harness.assert_all_is_back()


def test_prefixes_are_shared_by_equal_sums_alone():
    harness = Harness(max_loras_per_batch=3)

    def cached(label, scales):
        harness.generate(label, prompt(22), adapter=scales, max_tokens=2)
        harness.run()
        return harness.end(label).cached_tokens

    assert cached("a", {"x": 1.0, "y": 0.5}) == 0
    assert cached("b", {"y": 0.5, "x": 1.0}) == 20
    for label, scales in enumerate([{"x": 1.0}, {"x": 1.0, "y": 1.0}, {"x": 0.5, "y": 1.0}, {}]):
        assert cached(f"{label}", scales) == 0


def test_a_sum_is_not_starved_by_streams_of_each_of_its_adapters():
    harness = Harness(max_loras_per_batch=2, max_num_seqs=8, pages=256, max_queued_requests=4096)
    count = 0

    def feed_others():
        nonlocal count
        name = ("x", "z")[count % 2]
        harness.generate(f"w{count}", prompt(5, count), adapter=name, max_tokens=6)
        count += 1

    for _ in range(16):
        feed_others()
    harness.run_step()
    harness.generate("sum", prompt(5), adapter=of("xy"), max_tokens=4)
    harness.run_step()
    while harness.end_of("sum") is None:
        feed_others()
        harness.run_step()
        assert count < OVERTAKEN_MAX + 2 * ROTATE_STEPS + 64, "the sum starves"
    assert harness.output("sum") == expected(of("xy"), prompt(5), max_tokens=4)


def test_a_starving_sum_takes_the_slots_of_those_alone_that_it_does_not_need():
    harness = Harness(
        max_loras_per_batch=3, max_num_seqs=8, pages=1024, block_size=16, max_queued_requests=4096
    )
    for name in "xyz":
        harness.generate(name, prompt(5), adapter=name, max_tokens=2000, stop_token_ids=[])
    harness.run_step()
    harness.generate("sum", prompt(5), adapter=of("xvw"), max_tokens=4)
    for i in range(OVERTAKEN_MAX + 1):  # each overtakes the sum
        harness.generate(f"w{i}", prompt(5, i), adapter="x", max_tokens=1)
        harness.run_step()
    for _ in range(2 * ROTATE_STEPS + 40):
        harness.run_step()
    assert harness.end("sum").reason in ("length", "stop")
    assert harness.scheduler._counters()["preemptions_total"] == 2  # of y and z
    harness.run()
    for name in "xyz":
        assert harness.output(name) == expected(of(name), prompt(5), max_tokens=2000, stop=())
    harness.assert_all_is_back()


def test_halves_of_two_sums_do_not_hold_host_memory_for_ever():
    harness = Harness(max_loras_per_batch=3, max_loaded_loras=3, max_loras_per_request=3)
    harness.holds_acquires = True
    harness.generate("other", prompt(5), adapter="x")
    harness.generate("late", prompt(5), adapter=of("abc"))
    harness.advance()
    assert [each.digest for each in harness.withheld] == ["x", "a", "b"]
    # There is room for one more, and nothing runs.
    harness.generate("urgent", prompt(5), adapter=of("def"), priority=-100)
    harness.receive("tokenizer", Abort("c", "other"))
    harness.holds_acquires = False
    for acquire in harness.withheld:
        harness.acquired(acquire.digest)
    harness.run()
    assert harness.output("urgent") == expected(of("def"), prompt(5), max_tokens=8)
    assert harness.output("late") == expected(of("abc"), prompt(5), max_tokens=8)
    harness.assert_all_is_back()


@pytest.mark.parametrize("policy", ["lru", "fifo"])
def test_a_sum_needs_host_memory_for_one_adapter_at_a_time(policy):
    harness = Harness(
        pages=16, granules=dict.fromkeys("abcxyz", 6), max_loras_per_batch=3, max_loaded_loras=4,
        max_cpu_loras=1, lora_eviction_policy=policy,
    )  # fmt: skip
    for i, names in enumerate(["abc", "xyz", "bcx", "y", "az"]):
        harness.generate(names, prompt(5, i), adapter=of(names), max_tokens=4, stop_token_ids=[])
    harness.run()
    for i, names in enumerate(["abc", "xyz", "bcx", "y", "az"]):
        wanted = expected(of(names), prompt(5, i), max_tokens=4, stop=())
        assert harness.output(names) == wanted
    harness.assert_all_is_back()


def test_others_run_while_a_sum_gathers_its_adapters():
    harness = Harness(max_loras_per_batch=3, max_cpu_loras=2)
    harness.holds_acquires = True
    harness.generate("sum", prompt(5), adapter=of("ab"), max_tokens=4)
    harness.generate("other", prompt(5), adapter=of("cd"), max_tokens=4)
    harness.generate("one", prompt(5), adapter="x", max_tokens=4)
    harness.run()
    assert [each.digest for each in harness.withheld] == ["a", "b"]
    harness.acquired("a")
    harness.run()
    # It has gone to the device, and made room for who needs one alone.
    assert [each.digest for each in harness.withheld] == ["a", "b", "x"]
    harness.acquired("x")
    harness.run()
    assert harness.end("one").error is None
    harness.holds_acquires = False
    harness.acquired("b")
    harness.run()
    for label, names in (("sum", "ab"), ("other", "cd")):
        assert harness.output(label) == expected(of(names), prompt(5), max_tokens=4)
    harness.assert_all_is_back()


def test_an_adapter_that_cannot_be_had_fails_every_sum_that_it_is_part_of():
    harness = Harness(max_loras_per_batch=3)
    harness.holds_acquires = True
    for names in ("xy", "yz", "xz"):
        harness.generate(names, prompt(5), adapter=of(names), max_tokens=3)
    harness.run()
    assert {each.digest for each in harness.withheld} == set("xy")
    harness.receive("adapters", AcquireFailed("y", "its file is gone"))
    harness.holds_acquires = False
    harness.acquired("x")
    harness.run()
    for names in ("xy", "yz"):
        assert "its file is gone" in harness.end(names).error
    assert harness.output("xz") == expected(of("xz"), prompt(5), max_tokens=3)
    harness.assert_all_is_back()


def test_a_sum_that_does_not_fit_with_all_its_adapters_is_told_so():
    harness = Harness(pages=8, granules={"x": 8, "y": 8}, max_loras_per_batch=2)
    harness.generate("one", prompt(12), adapter="x", max_tokens=2)
    harness.generate("both", prompt(12), adapter=of("xy"), max_tokens=2)
    harness.run()
    assert harness.end("one").error is None
    assert "adapters take 8 pages" in harness.end("both").error
    harness.assert_all_is_back()


def test_a_sum_counts_for_each_of_its_adapters_in_metrics_and_limits():
    harness = Harness(
        max_loras_per_batch=2,
        adapter_limits={"x": Limits(max_concurrency=1), "*": Limits(max_concurrency=2)},
    )
    harness.generate("a", prompt(5), adapter=of("xy"), max_tokens=4, stop_token_ids=[])
    harness.generate("b", prompt(5), adapter=of("xz"), max_tokens=4)
    harness.generate("c", prompt(5), adapter=of("yz"), max_tokens=4, stop_token_ids=[])
    harness.generate("d", prompt(5), adapter="y", max_tokens=4)
    rejected = {each.refused.label: each.refused.message for each in harness.rejected}
    assert rejected.keys() == {"b", "d"}
    assert "of 'x'" in rejected["b"]
    assert "of 'y'" in rejected["d"]
    harness.run()
    counted = {each.digest: each for each in harness.scheduler._metrics.report(frozenset("x"))}
    assert {digest: each.requests for digest, each in counted.items()} == {"x": 1, "y": 2, "z": 1}
    assert {digest: each.output_tokens for digest, each in counted.items()} == {
        "x": 4, "y": 8, "z": 4
    }  # fmt: skip
    assert [each.names for each in counted.values()] == [["x"], ["y"], ["z"]]
    harness.assert_all_is_back()


def test_content_without_a_name_stays_until_the_last_sum_with_it_has_ended():
    harness = Harness(max_loras_per_batch=2)
    retired = []
    harness.generate("a", prompt(9), adapter=of("xy"), max_tokens=6, stop_token_ids=[])
    harness.run_step()
    deliver = harness._deliver
    harness._deliver = lambda sends: (
        deliver([send for send in sends if not isinstance(send.message, Retired)])
        or retired.extend(send.message for send in sends if isinstance(send.message, Retired))
    )
    harness.receive("adapters", Retire("y", 7))
    for _ in range(3):
        harness.run_step()
    assert retired == []
    harness.run()
    assert retired == [Retired("y", 7)]
    assert harness.scheduler._composer.slots.resident == {"x"}
    assert "y" not in harness.scheduler._composer.cache._branches
    assert harness.output("a") == expected(of("xy"), prompt(9), max_tokens=6, stop=())
