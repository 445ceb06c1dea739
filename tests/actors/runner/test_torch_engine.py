"""What one engine promises, whatever it is asked; agreement with PEFT is in test_exactness."""

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.actors.runner.engines import engine_of, harness_of, prefill, prompts_of
from tests.actors.scheduler_harness import GREEDY
from tests.checkpoints import ARCHITECTURES, greedy, save_model
from weft.actors.runner.architecture import UnsupportedModel
from weft.runtime.messages import Step

LOGPROBS = msgspec.structs.replace(GREEDY, logprobs=20)
RANDOM = msgspec.structs.replace(GREEDY, temperature=0.8)


def outputs(harness, requests, **options):
    """The tokens of requests, label -> (adapter, prompt), that run together."""
    for label, (adapter, prompt) in requests.items():
        options = {"max_tokens": 12, "stop_token_ids": []} | options
        harness.generate(label, prompt, adapter=adapter, **options)
    harness.run()
    harness.assert_all_is_back()
    return {label: harness.output(label) for label in requests}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_log_probabilities_equal_those_of_transformers(tmp_path, name):
    model = save_model(tmp_path, name)
    prompts = prompts_of(4)
    done = prefill(engine_of(tmp_path), prompts, sampling=LOGPROBS)
    for prompt, item in zip(prompts, done.logprobs, strict=True):
        with torch.inference_mode():
            expected = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        torch.testing.assert_close(
            torch.tensor(item.top), expected[item.top_tokens], rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen2.5-tied"])
def test_half_precision_weights_are_computed_in_float32_on_a_cpu(tmp_path, name, dtype):
    """So tokens equal those of transformers in float32, and its half precision is only near."""
    half = save_model(tmp_path, name, dtype=dtype)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    prompts = prompts_of(4)
    harness = harness_of(tmp_path, {})
    actual = outputs(harness, {f"r{i}": (None, prompt) for i, prompt in enumerate(prompts)})
    assert list(actual.values()) == [greedy(whole, None, prompt, 12) for prompt in prompts]

    # The error of transformers' own half precision, measured against float32.
    done = prefill(engine_of(tmp_path), prompts, sampling=LOGPROBS)
    for prompt, item in zip(prompts, done.logprobs, strict=True):
        with torch.inference_mode():
            near = half(torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1)
        difference = (torch.tensor(item.top) - near[item.top_tokens]).abs().max()
        assert difference < (0.25 if dtype == torch.bfloat16 else 0.03)


def test_weights_are_rounded_to_the_type_that_is_configured(tmp_path):
    save_model(tmp_path, "llama")
    rounded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).float()
    [prompt] = prompts_of(1)
    done = prefill(engine_of(tmp_path, dtype="bfloat16"), [prompt], sampling=LOGPROBS)
    with torch.inference_mode():
        expected = rounded(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    [item] = done.logprobs
    torch.testing.assert_close(torch.tensor(item.top), expected[item.top_tokens], rtol=0, atol=1e-4)


def test_shards_give_the_tokens_of_one_file(model, tmp_path):
    save_model(tmp_path, "llama", max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    requests = {f"r{i}": (None, prompt) for i, prompt in enumerate(prompts_of(3))}
    assert outputs(harness_of(tmp_path, {}), requests) == outputs(harness_of(model, {}), requests)


def test_a_slot_keeps_no_trace_of_the_adapter_before(model, paths):
    prompts = prompts_of(3)
    options = {"max_loras_per_batch": 1, "max_loaded_loras": 1}
    used = harness_of(model, paths, **options)
    for adapter in ("wide", "few", "narrow", "few"):  # each takes the only slot from the last
        label = f"{adapter}{len(used.begun)}"
        actual = outputs(used, {f"{label}-{i}": (adapter, p) for i, p in enumerate(prompts)})
        fresh = harness_of(model, paths, **options)
        expected = outputs(fresh, {f"{label}-{i}": (adapter, p) for i, p in enumerate(prompts)})
        assert actual == expected
    base = {f"base-{i}": (None, p) for i, p in enumerate(prompts)}
    assert outputs(used, base) == outputs(harness_of(model, {}), base)


@pytest.mark.parametrize("tokens", [64, 40], ids=["whole-prompts", "chunks"])
def test_a_sequence_that_is_not_finite_fails_alone(model, paths, tokens):
    healthy = {
        f"r{i}": (adapter, prompt)
        for i, (adapter, prompt) in enumerate(
            zip(["wide", None, "few", "narrow", None], prompts_of(5), strict=True)
        )
    }
    options = {"max_num_batched_tokens": tokens}
    expected = outputs(harness_of(model, paths, **options), healthy)
    harness = harness_of(model, paths, **options)
    ill = {f"ill{i}": ("huge", prompt) for i, prompt in enumerate(prompts_of(3, seed=1))}
    actual = outputs(harness, {**dict(list(healthy.items())[:2]), **ill, **healthy})
    assert {label: actual[label] for label in healthy} == expected
    for label in ill:
        assert actual[label] == []
        assert harness.end(label).reason == "error"
        assert "not a finite number" in harness.end(label).error


def test_pages_of_a_sequence_that_was_not_finite_serve_others(model, paths):
    """A page's next owner attends next to whatever the last one left there."""
    ill = {f"ill{i}": ("huge", prompt) for i, prompt in enumerate(prompts_of(12, seed=1))}
    healthy = {f"r{i}": ("few", prompt) for i, prompt in enumerate(prompts_of(12))}
    expected = outputs(harness_of(model, paths), healthy)
    harness = harness_of(model, paths)
    outputs(harness, ill)
    assert not all(keys.isfinite().all() for keys, _ in harness.engine._arena.kv)
    for keys, values in harness.engine._arena.kv:  # and as if every page had been theirs
        keys.fill_(float("nan"))
        values.fill_(float("nan"))
    assert outputs(harness, healthy) == expected


def test_sampled_tokens_are_the_same_alone_and_among_thirty_others(model, paths):
    [prompt] = prompts_of(1, seed=5)
    sampling = msgspec.structs.replace(RANDOM, seed=1234)
    alone = harness_of(model, paths)
    expected = outputs(alone, {"one": ("wide", prompt)}, sampling=sampling, max_tokens=40)
    crowd = harness_of(model, paths)
    adapters = [None, "narrow", "few", "wide", "other"]
    for i, other in enumerate(prompts_of(30, seed=6)):
        if i == 15:
            crowd.generate(
                "one", prompt, adapter="wide", sampling=sampling, max_tokens=40, stop_token_ids=[]
            )
        crowd.generate(
            f"r{i}",
            other,
            adapter=adapters[i % 5],
            sampling=msgspec.structs.replace(RANDOM, seed=i),
            max_tokens=10 + i,
            stop_token_ids=[],
        )
    crowd.run()
    assert crowd.output("one") == expected["one"]
    assert len(set(expected["one"])) > 10


def test_preemption_changes_no_sampled_token(model, paths):
    """Penalties, minimum lengths and noise go on where the sequence was interrupted."""
    each = [
        RANDOM,
        msgspec.structs.replace(RANDOM, repetition_penalty=1.3, frequency_penalty=0.4),
        msgspec.structs.replace(RANDOM, min_tokens=30, min_tokens_banned=list(range(80))),
        msgspec.structs.replace(GREEDY, presence_penalty=1.5, logit_bias={5: 3.0}),
        msgspec.structs.replace(RANDOM, top_k=9, top_p=0.9, min_p=0.05),
    ]
    adapters = ["wide", None, "few", "narrow"]

    def run(harness):
        for i, prompt in enumerate(prompts_of(10)):
            harness.generate(
                f"r{i}",
                prompt,
                adapter=adapters[i % 4],
                sampling=msgspec.structs.replace(each[i % 5], seed=i),
                max_tokens=40,
                stop_token_ids=[],
            )
        harness.run()
        harness.assert_all_is_back()
        return [harness.output(f"r{i}") for i in range(10)]

    expected = run(harness_of(model, paths))
    short = harness_of(model, paths, pages=130)
    assert run(short) == expected
    assert short.scheduler._counters()["preemptions_total"] > 0


def test_choices_of_one_request_differ_and_each_repeats(model, paths):
    [prompt] = prompts_of(1)
    sampling = msgspec.structs.replace(RANDOM, seed=9)
    runs = []
    for _ in range(2):
        harness = harness_of(model, paths)
        harness.generate("one", prompt, sampling=sampling, choices=3, max_tokens=12)
        harness.run()
        runs.append([harness.output("one", choice) for choice in range(3)])
    assert runs[0] == runs[1]
    assert len({tuple(tokens) for tokens in runs[0]}) == 3


def test_adapters_never_share_what_one_of_them_computed(model, paths):
    [prompt] = prompts_of(1, seed=3, longest=59)
    assert len(prompt) > 8
    harness = harness_of(model, paths)
    for adapter in ("wide", "narrow", None):
        label = f"first-{adapter}"
        outputs(harness, {label: (adapter, prompt)})
        assert harness.end(label).cached_tokens == 0
    for adapter in ("wide", "narrow", None):
        label = f"second-{adapter}"
        again = outputs(harness, {label: (adapter, prompt)})
        assert harness.end(label).cached_tokens == (len(prompt) - 1) // 4 * 4
        assert again[label] == harness.output(f"first-{adapter}")
    first = [harness.output(f"first-{adapter}") for adapter in ("wide", "narrow", None)]
    assert first[0] != first[1] != first[2]


def test_a_cache_too_small_for_two_pages_says_which_options_to_change(model):
    with pytest.raises(UnsupportedModel, match=r"raise kv_cache_memory_mib.*lower block_size"):
        engine_of(model, block_size=4096, kv_cache_memory_mib=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_says_what_to_choose(model):
    with pytest.raises(UnsupportedModel, match="use cpu or auto"):
        engine_of(model, device="cuda")


def test_a_step_without_tokens_computes_nothing(model):
    done = engine_of(model).execute(Step(0))
    assert (done.step, done.tokens) == (0, [])
