"""Steps that are launched before the one before is computed give the tokens of those that wait."""

import time

import msgspec
import pytest
import torch

from tests.actors.runner.beside import (
    AheadHarness,
    LateStream,
    SoonStream,
    call,
    interpreted,
    on_host,
)
from tests.actors.runner.engines import engine_of, harness_of, prefill, prompts_of, save_several
from tests.actors.scheduler_harness import GREEDY
from tests.checkpoints import ARCHITECTURES, save_model
from weft.actors.runner import warmup
from weft.actors.runner.forms import Form
from weft.runtime.messages import AdapterLoad, Chunk, Join, Step

RANDOM = msgspec.structs.replace(GREEDY, temperature=0.8)
# What a row may ask for; some draw by what they have drawn before.
KINDS = [
    GREEDY,
    RANDOM,
    msgspec.structs.replace(RANDOM, repetition_penalty=1.3, frequency_penalty=0.4),
    msgspec.structs.replace(GREEDY, logprobs=3),
    msgspec.structs.replace(RANDOM, min_tokens=8, min_tokens_banned=list(range(80))),
    msgspec.structs.replace(GREEDY, presence_penalty=1.5, logit_bias={5: 3.0}, logprobs=0),
    msgspec.structs.replace(RANDOM, top_k=9, top_p=0.9, min_p=0.05),
]


def served(harness, count, *, kinds=KINDS, adapters=(None,), max_tokens=14):
    """Requests that come one after the other, while others decode and end; what came of each."""
    for i, prompt in enumerate(prompts_of(count, longest=40)):
        sampling = msgspec.structs.replace(kinds[i % len(kinds)], seed=i)
        harness.generate(
            f"r{i}",
            prompt,
            adapter=adapters[i % len(adapters)],
            sampling=sampling,
            max_tokens=3 + (5 * i) % max_tokens,
            stop_token_ids=[],
        )
        for _ in range(i % 3):
            harness.run_step()
    harness.run()
    harness.assert_all_is_back()
    return [(harness.output(f"r{i}"), harness.end(f"r{i}").reason) for i in range(count)]


def ahead_of(model, paths, *, backend=on_host, **options):
    return harness_of(model, paths, backend=backend, kind=AheadHarness, **options)


@pytest.mark.parametrize("record", [call, None], ids=["graphs", "eager"])
@pytest.mark.parametrize("tokens", [64, 40], ids=["whole-prompts", "chunks"])
def test_requests_that_come_and_go_get_the_tokens_of_steps_that_wait(model, paths, record, tokens):
    options = {"max_num_batched_tokens": tokens}
    both = {"wide": 1.0, "few": -0.5}
    requests = {"count": 24, "adapters": ["wide", None, "few", both, "narrow", "huge"]}
    expected = served(harness_of(model, paths, **options), **requests)
    ahead = ahead_of(model, paths, backend=lambda: on_host(record), **options)
    assert served(ahead, **requests) == expected
    assert ahead.overlaps > 5
    assert len({reason for _, reason in expected}) == 2  # those of one adapter fail


def test_preempted_ones_get_the_tokens_of_steps_that_wait(model, paths):
    options = {"pages": 120}
    requests = {"count": 20, "adapters": ["wide", None, "few", "narrow"], "max_tokens": 60}
    expected = served(harness_of(model, paths, **options), **requests)
    ahead = ahead_of(model, paths, **options)
    assert served(ahead, **requests) == expected
    assert ahead.scheduler._counters()["preemptions_total"] > 0


# Adapters of which one is on the device at a time, so that each takes the pages of the one before.
ONE = {"max_loras_per_batch": 1, "max_loaded_loras": 1}
TURNS = {"count": 12, "adapters": ["few", "wide", "narrow"]}


@pytest.mark.parametrize("copies", [LateStream, SoonStream])
def test_adapters_that_take_each_others_pages_give_the_tokens_of_steps_that_wait(
    model, paths, copies
):
    """A load comes while the step before, which reads what it overwrites, has not begun."""
    expected = served(harness_of(model, paths, **ONE), **TURNS)
    ahead = ahead_of(model, paths, backend=lambda: on_host(copies=copies()), **ONE)
    assert served(ahead, **TURNS) == expected
    assert sum(len(step.loads) for step in ahead.sent_steps) > 3


class HastyStream(LateStream):
    """Waits for no other."""

    def wait_for(self, mark):
        pass


class HastyCopies(SoonStream):
    def wait_for(self, mark):
        pass


@pytest.mark.parametrize(
    "streams",
    [{"stream": HastyStream}, {"copies": HastyCopies}],
    ids=["steps-before-their-adapters", "adapters-over-those-in-use"],
)
def test_streams_that_do_not_wait_for_each_other_give_other_tokens(model, paths, streams):
    expected = served(harness_of(model, paths, **ONE), **TURNS)
    made = {name: make() for name, make in streams.items()}
    hasty = ahead_of(model, paths, backend=lambda: on_host(**made), **ONE)
    assert served(hasty, **TURNS) != expected


def test_a_load_waits_for_no_step_and_no_step_without_it_waits_for_a_load(model, paths):
    stream, copies = LateStream(), LateStream()
    engine = begun(
        model, stream, [[1, 2], [4]], copies=copies, max_loras_per_batch=1, max_loaded_loras=1
    )
    one = engine.launch(Step(1))
    pages = list(range(20, 80))
    two = engine.launch(Step(2, [AdapterLoad(0, "wide", paths["wide"], pages)]))
    assert not one.is_done
    assert one.collect().tokens
    assert two.collect().tokens
    engine.launch(Step(3, leaves=[0, 1])).collect()
    assert copies.done == 0
    join = Join(0, [(0, 1.0)], 0, [10], GREEDY, 0, 1, None)
    four = engine.launch(Step(4, joins=[join], chunks=[Chunk(0, 0, [5, 6], True)]))
    assert copies.done == 0  # the host does not wait either
    four.collect()
    assert copies.waiting == 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_decodes_the_same_ahead(tmp_path, name):
    save_model(tmp_path, name)
    expected = served(harness_of(tmp_path, {}), 6, kinds=[GREEDY])
    assert served(ahead_of(tmp_path, {}), 6, kinds=[GREEDY]) == expected


def test_two_ranks_decode_the_same_ahead(model, paths):
    requests = {"count": 8, "adapters": ["few", None]}
    expected = served(harness_of(model, paths), **requests)
    two = harness_of(model, paths, backend=on_host, tensor_parallel_size=2)
    assert served(two, **requests) == expected


def begun(model, stream, prompts, *, sampling=GREEDY, record=call, copies=None, **options):
    """An engine whose rows have had their prompts and now decode."""
    engine = engine_of(model, backend=lambda: on_host(record, stream, copies), **options)
    prefill(engine, prompts, sampling=sampling)
    return engine


def test_a_step_is_laid_out_before_the_one_before_has_begun(model):
    stream = LateStream()
    engine = begun(model, stream, [[1, 2], [4]])
    one, two = engine.launch(Step(1)), engine.launch(Step(2))
    assert stream.waiting == 2
    assert not one.is_done
    plain = engine_of(model)
    prefill(plain, [[1, 2], [4]])
    expected = [plain.execute(Step(n)).tokens for n in (1, 2)]
    assert one.collect().tokens == expected[0]
    assert stream.waiting == 1
    assert not two.is_done
    assert two.collect().tokens == expected[1]


def test_rows_that_draw_by_what_they_have_drawn_wait_for_it(model):
    stream = LateStream()
    engine = begun(model, stream, [[1]], sampling=KINDS[2])
    one = engine.launch(Step(1))
    assert stream.waiting == 1
    engine.launch(Step(2))
    assert one.is_done
    assert stream.waiting == 1


def test_more_steps_than_there_is_memory_for_are_an_assertion(model):
    engine = begun(model, LateStream(), [[1]])
    under_way = [engine.launch(Step(n)) for n in (1, 2)]
    with pytest.raises(AssertionError, match="2 steps are under way"):
        engine.launch(Step(3))
    assert len(under_way) == 2


def test_time_that_two_steps_share_counts_once(model, monkeypatch):
    engine = begun(model, LateStream(), [[1]])
    times_us = iter([0, 10, 100, 150])  # of two launches and two answers
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(times_us) * 1000)
    under_way = [engine.launch(Step(n)) for n in (1, 2)]
    assert [step.collect().compute_us for step in under_way] == [100, 50]


@pytest.mark.parametrize("rows", [1, 3, 5, 9])
def test_padding_writes_to_its_own_page_and_is_not_fed(model, rows):
    prompts = prompts_of(rows, longest=2)

    def decoded(record):
        engine = begun(model, LateStream(), prompts, record=record, max_num_seqs=16)
        engine._arena.memory[:, -1] = 0
        engine._executor._last_tokens[rows:] = 77
        tokens = [engine.execute(Step(n)).tokens for n in (1, 2)]
        return tokens, engine._arena.memory, engine._executor._last_tokens

    (padded, arena, fed), (exact, expected, _) = decoded(call), decoded(None)
    assert padded == exact
    assert all(len(tokens) == rows for tokens in padded)
    assert arena[:, :-1].equal(expected[:, :-1])
    assert not expected[:, -1].any()
    assert bool(arena[:, -1].any()) == (rows not in (1, 16))
    assert fed[rows:].eq(77).all()


def test_what_padding_computes_reaches_nobody(model):
    """Its tokens, and its page, are not numbers."""
    prompts = prompts_of(3, longest=3)
    expected = [begun(model, LateStream(), prompts).execute(Step(1)).tokens]
    engine = begun(model, LateStream(), prompts)
    for keys, values in engine._arena.kv:
        keys[-1], values[-1] = float("nan"), float("nan")
    engine._model._embedding[0] = float("nan")  # what padding feeds
    assert 0 not in [token for prompt in prompts for token in prompt]
    assert [engine.execute(Step(1)).tokens] == expected


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_the_largest_steps_hold_as_many_tokens_and_rows_as_any(model, rows):
    laid_out = []

    def noting(compute, batch):
        return compute

    engine = engine_of(
        model, backend=lambda: on_host(noting), max_num_seqs=rows, max_num_batched_tokens=64
    )
    ahead = engine._executor
    launch = ahead.launch
    ahead.launch = lambda number, host, started: laid_out.append(host) or launch(number, host, 0)
    limits = warmup.Limits(rows=rows, tokens=64, row_pages=10, adapters=1, rank=8, row_adapters=1)
    scratch = warmup.Scratch(page=engine.ready().pages, tokens=4)
    with torch.inference_mode():
        warmup.run_largest(ahead, limits, scratch)
    most = max(laid_out, key=lambda host: len(host.tokens))
    assert len(most.tokens) == min(64, rows * 40)
    assert all(len(host.sampled_rows) == rows for host in laid_out)
    assert all(host.positions.max() < 40 for host in laid_out)
    assert {host.has_adapters for host in laid_out} == {True, False}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, Triton compiles")
@pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value|divide by zero):RuntimeWarning"
)  # padding
@pytest.mark.parametrize("name", ["llama", "qwen2-window"])
def test_a_gpus_kernels_in_graphs_give_the_tokens_of_a_cpus(tmp_path, name):
    pytest.importorskip("triton")
    save_model(tmp_path, name)
    paths = save_several(tmp_path, tmp_path, {"wide": {"rank": 20}, "narrow": {"rank": 3}})
    options = {"max_num_seqs": 6, "max_num_batched_tokens": 32, "max_lora_rank": 32}
    adapters = ["wide", None, {"wide": 0.5, "narrow": 1.0}, "narrow"]
    requests = {"count": 6, "adapters": adapters, "max_tokens": 6}
    expected = served(harness_of(tmp_path, paths, **options), **requests)
    ahead, kinds = ahead_of(tmp_path, paths, backend=interpreted, **options), set()
    graphs = ahead.engine._executor.graphs
    run = graphs.run
    graphs.run = lambda kind, batch: kinds.add(kind and kind.form) or run(kind, batch)
    assert served(ahead, **requests) == expected
    assert kinds == {None, *Form}
