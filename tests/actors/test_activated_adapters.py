"""Activated LoRA gives PEFT's tokens, in any batch, and shares the KV before its invocation."""

import random

import pytest

from tests.actors.runner.engines import harness_of
from tests.actors.test_every_kind_of_adapter import stored
from tests.checkpoints import MODULES, LoraConfig, greedy, peft_model, save_adapters, save_model
from weft.actors.runner.operations import NATIVE
from weft.kernels.paged_attention import cpu as paged_attention
from weft.kernels.sgmv import cpu as sgmv

# A checkpoint, an oracle and some runs for each architecture: seconds each.
pytestmark = [
    pytest.mark.slow,
    # PEFT takes biases of B for matrices that were cut up, and cannot merge all of them.
    pytest.mark.filterwarnings("ignore:.*(have invalid shape|lora_bias=True)"),
]

OUTPUT = 16
INVOCATION = [7, 8, 9]


def configs():
    options = [
        {"r": 8, "target_modules": list(MODULES), "alora_invocation_tokens": INVOCATION},
        {"r": 16, "target_modules": ["q_proj", "v_proj"], "alora_invocation_tokens": [5]},
        {
            "r": 4, "target_modules": list(MODULES), "alora_invocation_tokens": INVOCATION,
            "lora_bias": True,
        },
        {"r": 8, "target_modules": list(MODULES)},
    ]  # fmt: skip
    return [LoraConfig(task_type="CAUSAL_LM", lora_alpha=16, **each) for each in options]


def prompts(rng):
    """The invocation first, last, twice, and behind a long conversation, which many begin with."""
    shared = [rng.randrange(10, 160) for _ in range(45)]
    some = [rng.randrange(10, 160) for _ in range(6)]
    return [
        [*INVOCATION, 5, *some],
        [*some, 5, *INVOCATION],
        [*some, 5, *INVOCATION, *some[:2], *INVOCATION, 5, 11],
        [*shared, 5, *INVOCATION],
        [*shared, *some, 5, *INVOCATION, *some],
        [5, *shared, *INVOCATION, 7, 8],
    ]


@pytest.fixture(scope="module", params=["llama-mha-bias", "qwen2.5-tied", "qwen3"])
def checkpoint(request, tmp_path_factory):
    """A model folder, its adapters, and requests with what transformers and PEFT answer to them."""
    folder = tmp_path_factory.mktemp(request.param)
    model = save_model(folder / "model", request.param)
    adapters = save_adapters(folder, model, 0, configs=configs())
    oracle = peft_model(folder / "model", adapters)
    rng = random.Random(0)
    requests = {}
    for prompt in prompts(rng):
        for name in (None, *adapters):
            answer = greedy(oracle, name, prompt, OUTPUT)
            requests[f"r{len(requests)}"] = (name, prompt, answer)
    answers = {name: [] for name in (None, *adapters)}
    for name, _, answer in requests.values():
        answers[name].append(answer)
    assert len({str(answer) for answer in answers.values()}) == len(answers), "some do nothing"
    return folder / "model", adapters, requests


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"max_loras_per_batch": 4}, id="one-batch"),
        pytest.param(
            {"max_loras_per_batch": 2, "max_num_batched_tokens": 24, "max_num_seqs": 16},
            id="chunks-and-few-slots",
        ),
        pytest.param({"max_loras_per_batch": 4, "native": False}, id="without-a-compiler"),
        pytest.param({"max_loras_per_batch": 4, "tensor_parallel_size": 2}, id="two-ranks"),
        pytest.param({"max_loras_per_batch": 4, "pages": 80, "max_num_seqs": 12}, id="few-pages"),
    ],
)
def test_tokens_are_those_of_peft(checkpoint, options, tmp_path, monkeypatch):
    model, adapters, requests = checkpoint
    options = dict(options)
    if not options.pop("native", True):
        for kernel in (*NATIVE, paged_attention, sgmv):
            monkeypatch.setattr(kernel, "library", lambda: None)
    digests, acquired = stored(model, adapters, tmp_path, options.get("tensor_parallel_size", 1))
    paths = {digest: each.path for digest, each in acquired.items()}
    harness = harness_of(model, paths, **options)
    tokens = [each.alora_invocation_tokens for each in configs()]
    invocations = dict(zip(adapters, tokens, strict=True))
    for again in ("", "again "):  # then from the prefix cache
        for label, (name, prompt, _) in requests.items():
            harness.generate(
                again + label,
                prompt,
                adapter=name and digests[name],
                lora_start=last(prompt, invocations.get(name) or []),
                max_tokens=OUTPUT,
                stop_token_ids=[],
            )
        harness.run()
        harness.assert_all_is_back()
        for label, (name, prompt, expected) in requests.items():
            assert harness.output(again + label) == expected, (again + label, name, prompt)
    if "pages" in options:
        assert harness.scheduler._counters()["preemptions_total"] > 0


def last(prompt, tokens):
    """Where the last occurrence of tokens begins; 0 without any."""
    starts = [i for i in range(len(prompt)) if prompt[i : i + len(tokens)] == tokens]
    return starts[-1] if tokens else 0


def test_what_lies_before_an_invocation_is_computed_once_for_all(checkpoint, tmp_path):
    model, adapters, _ = checkpoint
    digests, acquired = stored(model, adapters, tmp_path, 1)
    harness = harness_of(model, {d: each.path for d, each in acquired.items()}, block_size=4)
    conversation = [10 + i % 150 for i in range(90)]

    def cached(label, name, prompt, start):
        adapter = name and digests[name]
        harness.generate(label, prompt, adapter=adapter, lora_start=start, max_tokens=4)
        harness.run()
        return harness.end(label).cached_tokens

    assert cached("base", None, conversation, 0) == 0
    invoked = [*conversation, *INVOCATION]
    # All whole pages of the conversation: what is left to compute are six tokens.
    assert cached("first", "adapter0", invoked, 90) == 88
    assert cached("other", "adapter2", invoked, 90) == 88
    assert cached("plain", "adapter3", invoked, 0) == 0
    assert cached("back", None, [*invoked, 1, 2, 3], 0) == 88
