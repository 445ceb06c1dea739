"""weft's tokens equal those of transformers and PEFT, whatever else is in the batch."""

import random

import msgspec
import pytest

from tests.actors.runner.ranks import Ranks
from tests.actors.scheduler_harness import Harness, config
from tests.checkpoints import ARCHITECTURES, greedy, peft_model, save_adapters, save_model
from tests.sim.files import store_on_disk
from weft.actors.adapters.base import BaseShapes
from weft.actors.runner.operations import NATIVE
from weft.actors.runner.torch_engine import TorchEngine
from weft.kernels.paged_attention import cpu as paged_attention
from weft.kernels.sgmv import cpu as sgmv
from weft.runtime.actor import Turn
from weft.runtime.config import Config
from weft.runtime.messages import Acquire

# A checkpoint, an oracle and three runs for each architecture: seconds each.
pytestmark = pytest.mark.slow

ADAPTERS = 16
OUTPUT = 24


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(request, tmp_path_factory):
    """A model folder, its adapters, and requests with what transformers and PEFT answer to them."""
    folder = tmp_path_factory.mktemp(request.param)
    model = save_model(folder / "model", request.param)
    adapters = save_adapters(folder, model, ADAPTERS)
    oracle = peft_model(folder / "model", adapters)
    rng = random.Random(0)
    shared = [rng.randrange(160) for _ in range(23)]
    requests = {}
    for index, adapter in enumerate([None, *adapters, None]):
        prompt = [rng.randrange(160) for _ in range(rng.choice([1, 3, 17, 40, 70]))]
        if index % 3 == 0:
            prompt = shared + prompt
        requests[f"r{index}"] = (adapter, prompt, greedy(oracle, adapter, prompt, OUTPUT))
    return folder, adapters, requests


@pytest.fixture(scope="module")
def digests(checkpoint, tmp_path_factory):
    """The adapters as the store keeps them: name -> digest; by number of ranks, digest -> where."""
    acquired = {}
    for size in (1, 2, 4):
        place = str(tmp_path_factory.mktemp("store"))
        names, acquired[size] = stored(checkpoint, place, size)
    return names, acquired


def stored(checkpoint, place, size):
    folder, adapters, _ = checkpoint
    settings = Config(
        model=str(folder / "model"),
        adapters={name: str(path) for name, path in adapters.items()},
        tensor_parallel_size=size,
    )
    base = BaseShapes.load(settings.model)
    store = store_on_disk(settings, base, place)
    turn = Turn(0, lambda peer: 100)
    [(_, catalog)] = store.advance(turn)
    assert [entry.refused for entry in catalog.adapters] == [None] * ADAPTERS
    acquired = {}
    for entry in catalog.adapters:
        store.receive("scheduler", Acquire(entry.digest), 0)
        [(_, acquired[entry.digest])] = store.advance(turn)
    return {entry.name: entry.digest for entry in catalog.adapters}, acquired


def harness(checkpoint, digests, **options):
    options = {"max_num_seqs": 32, "block_size": 8, "kv_cache_memory_mib": 1} | options
    options = {"max_loras_per_batch": ADAPTERS, "max_loaded_loras": ADAPTERS} | options
    pages = options.pop("pages", None)
    settings = config(model=str(checkpoint[0] / "model"), **options)
    if settings.tensor_parallel_size > 1:
        engine = Ranks(settings)
    else:
        engine = TorchEngine(settings, lambda share, what: None)
    if pages is not None:
        assert pages <= engine.ready().pages
        engine._ready = msgspec.structs.replace(engine.ready(), pages=pages)
    acquired = digests[1][settings.tensor_parallel_size]
    paths = {digest: each.path for digest, each in acquired.items()}
    granules = {digest: each.granules for digest, each in acquired.items()}
    return Harness(engine=engine, paths=paths, granules=granules, **options)


def ask(harness, requests, digests, **options):
    for label, (adapter, prompt, _) in requests.items():
        harness.generate(
            label,
            prompt,
            adapter=adapter and digests[0][adapter],
            max_tokens=OUTPUT,
            stop_token_ids=[],
            **options,
        )
    harness.run()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"max_num_batched_tokens": 512}, id="whole-prompts"),
        pytest.param(
            {"max_num_batched_tokens": 40, "max_loras_per_batch": 5, "max_loaded_loras": 7},
            id="chunks-and-few-slots",
        ),
        pytest.param({"block_size": 4, "pages": 90}, id="few-pages"),
        pytest.param({"max_num_batched_tokens": 100, "native": False}, id="without-a-compiler"),
        pytest.param({"tensor_parallel_size": 2, "kv_cache_memory_mib": 8}, id="two-ranks"),
        pytest.param(
            {"tensor_parallel_size": 4, "max_num_batched_tokens": 40, "kv_cache_memory_mib": 8},
            id="four-ranks",
        ),
        pytest.param(
            {"tensor_parallel_size": 2, "kv_cache_memory_mib": 8, "block_size": 4, "pages": 90},
            id="two-ranks-few-pages",
        ),
    ],
)
def test_greedy_tokens_of_a_mixed_batch_equal_transformers_and_peft(
    checkpoint, digests, options, monkeypatch
):
    options = dict(options)
    if not options.pop("native", True):
        for kernel in (*NATIVE, paged_attention, sgmv):
            monkeypatch.setattr(kernel, "library", lambda: None)
    made = harness(checkpoint, digests, **options)
    requests = checkpoint[2]
    ask(made, requests, digests)
    for label, (adapter, _, expected) in requests.items():
        assert made.output(label) == expected, (label, adapter)
    if "pages" in options:
        assert made.scheduler._counters()["preemptions_total"] > 0
    made.assert_all_is_back()
    again = {f"again-{label}": request for label, request in requests.items()}
    ask(made, again, digests)  # now from the prefix cache
    if "pages" not in options:
        assert sum(made.end(label).cached_tokens for label in again) > 0
    for label, (adapter, _, expected) in again.items():
        assert made.output(label) == expected, (label, adapter)
