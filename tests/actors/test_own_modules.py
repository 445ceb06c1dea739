"""Adapters with embeddings, heads, norms and tokens of their own give PEFT's tokens."""

import random

import msgspec
import pytest

from tests import own_modules
from tests.actors.runner.beside import AheadHarness, interpreted, on_host
from tests.actors.runner.engines import engine_of
from tests.actors.scheduler_harness import GREEDY, Harness
from tests.actors.test_every_kind_of_adapter import stored
from tests.checkpoints import greedy, peft_model, save_model
from tests.own_modules import VOCABULARY
from weft.actors.runner.operations import NATIVE
from weft.kernels.paged_attention import cpu as paged_attention
from weft.kernels.sgmv import cpu as sgmv

# A checkpoint, an oracle for each adapter and some runs for each architecture: seconds each.
pytestmark = [
    pytest.mark.slow,
    # PEFT says what it saves and what it cannot know of a resized base.
    pytest.mark.filterwarnings("ignore:(Setting|Model with|Model has|Could not)"),
    pytest.mark.filterwarnings("ignore:.*ensure_weight_tying"),
    pytest.mark.filterwarnings("ignore:overflow encountered"),  # Triton's interpreter in Philox
]

OUTPUT = 16
OPTIONS = {
    "max_num_seqs": 48, "max_num_batched_tokens": 64, "block_size": 4, "kv_cache_memory_mib": 32,
    "max_loras_per_batch": 20, "max_loaded_loras": 20,
}  # fmt: skip


@pytest.fixture(scope="module", params=["llama", "qwen2.5-tied", "qwen3"])
def checkpoint(request, tmp_path_factory):
    """A model folder, its adapters, and requests with what transformers and PEFT answer to them."""
    folder = tmp_path_factory.mktemp(request.param)
    model = folder / "model"
    save_model(model, request.param)
    kinds = own_modules.kinds_of(model)
    adapters = own_modules.save(folder, model, kinds)
    rng = random.Random(0)
    asked = [(None, VOCABULARY, peft_model(model, {}))]
    asked += [
        (name, kind.tokens, own_modules.oracle(model, adapters[name], kind))
        for name, kind in kinds.items()
    ]
    requests = {}
    for name, tokens, oracle in asked:
        for number, length in enumerate((1, 17, 40)):
            prompt = [rng.randrange(tokens) for _ in range(length)]
            expected = greedy(oracle, name and "default", prompt, OUTPUT)
            requests[f"{name}-{number}"] = (name, prompt, expected)
    return model, adapters, requests


@pytest.fixture(scope="module")
def kept(checkpoint, tmp_path_factory):
    """What the store makes of the adapters, for one rank and for two."""
    model, adapters, _ = checkpoint
    return {
        size: stored(model, adapters, tmp_path_factory.mktemp("store"), size) for size in (1, 2)
    }


def answers(
    checkpoint, kept, labels, *, sampling=GREEDY, kind=Harness, backend=None, pages=None, **options
):
    """Run some requests together; return their tokens and log probabilities."""
    model, _, requests = checkpoint
    options = OPTIONS | options
    digests, acquired = kept[options.get("tensor_parallel_size", 1)]
    engine = engine_of(model, backend=backend, **options)
    if pages is not None:
        engine._ready = msgspec.structs.replace(engine.ready(), pages=pages)
    harness = kind(
        engine=engine,
        paths={digest: each.path for digest, each in acquired.items()},
        granules={digest: each.granules for digest, each in acquired.items()},
        **options,
    )
    for label in labels:
        adapter, prompt, _ = requests[label]
        harness.generate(
            label,
            prompt,
            adapter=adapter and digests[adapter],
            max_tokens=OUTPUT,
            stop_token_ids=[],
            sampling=sampling,
        )
    harness.run()
    harness.assert_all_is_back()
    if pages is not None:
        assert harness.scheduler._counters()["preemptions_total"] > 0
    sequences = {label: harness.begun[label].first_sequence for label in labels}
    return {
        label: (harness.output(label), harness.logprobs.get(sequence))
        for label, sequence in sequences.items()
    }


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="one-batch"),
        pytest.param(
            {"max_loras_per_batch": 3, "max_loaded_loras": 4, "max_num_seqs": 8}, id="few-slots"
        ),
        pytest.param({"max_num_batched_tokens": 48, "block_size": 8}, id="chunks"),
        pytest.param({"pages": 150}, id="few-pages"),
        pytest.param({"native": False}, id="without-a-compiler"),
        pytest.param({"tensor_parallel_size": 2}, id="two-ranks"),
    ],
)
def test_tokens_of_a_mixed_batch_are_those_of_peft(checkpoint, kept, options, monkeypatch):
    options = dict(options)
    if not options.pop("native", True):
        for kernel in (*NATIVE, paged_attention, sgmv):
            monkeypatch.setattr(kernel, "library", lambda: None)
    requests = checkpoint[2]
    found = answers(checkpoint, kept, requests, **options)
    for label, (adapter, _, expected) in requests.items():
        assert found[label][0] == expected, (label, adapter)
    added = {adapter for adapter, _, tokens in requests.values() if max(tokens) >= VOCABULARY}
    assert added == {"added", "added-and-updated", "added-and-own", "added-and-tokens"} & added
    assert len(added) > 1, "hardly any added token was sampled"


def test_a_device_beside_the_host_gives_the_same_tokens(checkpoint, kept):
    """Where a step with such an adapter has no graph, and the one after it may have."""
    requests = checkpoint[2]
    found = answers(checkpoint, kept, requests, kind=AheadHarness, backend=on_host)
    for label, (_, _, expected) in requests.items():
        assert found[label][0] == expected, label


def test_kernels_for_a_gpu_give_the_same_tokens(checkpoint, kept):
    labels = ["None-0", "norms-0", "added-and-updated-0"]
    options = {"max_num_seqs": 3, "max_num_batched_tokens": 4, "max_loras_per_batch": 2}
    found = answers(checkpoint, kept, labels, backend=lambda: interpreted(None), **options)
    for label in labels:
        assert found[label][0] == checkpoint[2][label][2], label


def test_rows_of_others_stay_the_same_bits(checkpoint, kept):
    """Also where they are drawn, from fewer tokens than their neighbours."""
    sampling = msgspec.structs.replace(GREEDY, temperature=1.0, top_p=0.9, logprobs=3, seed=5)
    others = [label for label in checkpoint[2] if label.startswith(("None", "plain"))]
    alone = answers(checkpoint, kept, others, sampling=sampling)
    among = answers(checkpoint, kept, checkpoint[2], sampling=sampling)
    for label in others:
        assert among[label] == alone[label]


def test_a_row_with_modules_of_its_own_has_the_same_bits_alone(checkpoint, kept):
    sampling = msgspec.structs.replace(GREEDY, temperature=0.8, logprobs=2, seed=7)
    among = answers(checkpoint, kept, checkpoint[2], sampling=sampling)
    for label in ("both-1", "added-and-updated-1", "own-both-1", "dora-1"):
        assert answers(checkpoint, kept, [label], sampling=sampling)[label] == among[label]
