"""Engines on a CUDA device: what the tests of a device that the host plays cannot show."""

import msgspec
import pytest
import torch

from tests.actors.runner.beside import AheadHarness
from tests.actors.runner.engines import engine_of, harness_of, prefill, save_several
from tests.actors.runner.test_ahead import KINDS, served
from tests.actors.scheduler_harness import GREEDY
from tests.checkpoints import ARCHITECTURES, save_model
from weft.actors.runner.forms import Form
from weft.runtime.messages import AdapterLoad, Step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

SHARE = 0.2
GPU = {"device": "cuda", "gpu_memory_utilization": SHARE, "pages": 300, "kind": AheadHarness}
ADAPTERS = {"wide": 32, "narrow": 3}
REQUESTS = {"count": 24, "adapters": ["wide", None, "narrow"]}


@pytest.fixture
def paths(tmp_path):
    """A function that writes a model into the folder, and adapters of it."""

    def save(name, **options):
        save_model(tmp_path, name, **options)
        kinds = {digest: {"rank": rank} for digest, rank in ADAPTERS.items()}
        return save_several(tmp_path, tmp_path, kinds)

    return save


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_tokens_are_those_of_a_cpu(tmp_path, paths, name):
    adapters = paths(name)
    requests = REQUESTS | {"kinds": [GREEDY]}
    expected = served(harness_of(tmp_path, adapters, device="cpu"), **requests)
    assert served(harness_of(tmp_path, adapters, **GPU), **requests) == expected


def test_adapters_that_take_each_others_pages_give_the_tokens_of_a_cpu(tmp_path, paths):
    """They are copied on a stream of their own, while steps that read the pages may be computed."""
    adapters = paths("llama")
    options = {"max_loras_per_batch": 1, "max_loaded_loras": 1}
    requests = REQUESTS | {"kinds": [GREEDY]}
    expected = served(harness_of(tmp_path, adapters, device="cpu", **options), **requests)
    assert served(harness_of(tmp_path, adapters, **GPU, **options), **requests) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_graphs_give_the_tokens_of_eager_steps(tmp_path, paths, dtype):
    """Of rows of every kind, that come and go: each decode step is a graph, or none is."""
    adapters = paths("llama", dtype=dtype)
    eager = harness_of(tmp_path, adapters, enforce_eager=True, **GPU)
    graphs = harness_of(tmp_path, adapters, **GPU)
    for form in Form:
        assert graphs.engine._executor.graphs.kind(1, form) is not None
        assert eager.engine._executor.graphs.kind(1, form) is None
    assert served(graphs, **REQUESTS) == served(eager, **REQUESTS)


@pytest.mark.parametrize("rows", [1, 8, 32])
def test_log_probabilities_of_a_graph_are_bits_of_an_eager_step(tmp_path, paths, rows):
    """Of as many rows as the graph has, so that the matrix library does the same."""
    paths("llama", dtype=torch.bfloat16)
    logprobs = msgspec.structs.replace(GREEDY, logprobs=20)

    def decoded(**options):
        options = {"device": "cuda", "gpu_memory_utilization": SHARE, **options}
        engine = engine_of(tmp_path, **options)
        prefill(engine, [[row + 1, 7] for row in range(rows)], sampling=logprobs)
        return [msgspec.to_builtins(engine.execute(Step(n)).logprobs) for n in (1, 2)]

    assert decoded() == decoded(enforce_eager=True)


def decoding(tmp_path, paths, *, sampling):
    """An engine in which three rows decode, one of them by an adapter."""
    adapters = paths("llama")
    engine = engine_of(tmp_path, device="cuda", gpu_memory_utilization=SHARE)
    load = AdapterLoad(0, "wide", adapters["wide"], list(range(100, 200)))
    engine.execute(Step(0, loads=[load]))
    prefill(engine, [[1], [2], [3]], sampling=sampling, adapters=[None, 0, None], step=1)
    engine.execute(Step(2))
    return engine


def test_a_steady_step_makes_one_copy_each_way(tmp_path, paths):
    engine = decoding(tmp_path, paths, sampling=KINDS[1])
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        engine.execute(Step(3))
    names = [event.name for event in profile.events()]
    for direction in ("HtoD", "DtoH"):
        assert len([n for n in names if n.startswith(f"Memcpy {direction}")]) == 1, direction


def test_laying_out_a_steady_step_waits_for_nothing(tmp_path, paths):
    engine = decoding(tmp_path, paths, sampling=KINDS[1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        under_way = [engine.launch(Step(3)), engine.launch(Step(4))]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [len(step.collect().tokens) for step in under_way] == [3, 3]


def test_memory_is_within_its_share_with_graphs_and_the_largest_steps(tmp_path, paths):
    paths("llama")
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    if free < total * 0.9:
        pytest.skip("somebody else uses the device")
    engine = engine_of(tmp_path, device="cuda", gpu_memory_utilization=SHARE)
    prefill(engine, [[1] * 30, [2] * 30], sampling=KINDS[3])
    for n in range(1, 3):
        engine.execute(Step(n))
    free, total = torch.cuda.mem_get_info()
    assert total - free <= SHARE * total * 1.02
    assert total - free >= SHARE * total * 0.9
