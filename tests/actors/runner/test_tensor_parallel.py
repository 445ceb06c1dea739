"""A model split over ranks gives what the whole one gives; agreement with PEFT: test_exactness."""

import threading

import msgspec
import pytest
import torch
from transformers import LlamaConfig

from tests.actors.runner.engines import engine_of, harness_of, prefill, prompts_of, save_several
from tests.actors.scheduler_harness import GREEDY
from tests.checkpoints import SMALL, random_model, save_model
from weft.actors.runner import architecture, weights
from weft.kernels.collectives import shared_memory
from weft.runtime.config import ConfigError
from weft.runtime.messages import AdapterLoad, Chunk, Join, Step

pytestmark = pytest.mark.skipif(shared_memory.library() is None, reason="there is no C compiler")

LOGPROBS = msgspec.structs.replace(GREEDY, logprobs=8)
MEMORY = {"kv_cache_memory_mib": 8}
COLUMN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head")
ROW = ("o_proj", "down_proj")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, "llama-mha-bias")
    return folder


@pytest.fixture(scope="module")
def paths(model, tmp_path_factory):
    """Adapters whose ranks do not divide by anything, one on few modules, one without end."""
    folder = tmp_path_factory.mktemp("adapters")
    kinds = {
        "odd": {"rank": 13},
        "one": {"rank": 1},
        "few": {"modules": ("v_proj", "o_proj", "down_proj"), "rank": 5},
        "huge": {"size": 1e30},
    }
    return save_several(folder, model, kinds)


def parts_of(folder, size):
    whole = architecture.read(folder)
    return [
        weights.load(folder, whole, lambda share: None, whole.part(rank, size).shard)
        for rank in range(size)
    ]


@pytest.mark.parametrize("size", [2, 4])
def test_the_ranks_tensors_put_together_are_the_checkpoints(model, size):
    whole = weights.load(model, architecture.read(model), lambda share: None)
    parts = parts_of(model, size)
    for name, tensor in whole.items():
        *_, module, kind = name.split(".")
        held = [part[name] for part in parts if name in part]
        if module in COLUMN:
            assert torch.cat(held).equal(tensor), name
        elif module in ROW and kind == "weight":
            assert torch.cat(held, dim=1).equal(tensor), name
        elif module in ROW:  # added once, so only one rank has it
            assert [rank for rank in range(size) if name in parts[rank]] == [0], name
            assert held[0].equal(tensor)
        else:
            assert all(each.equal(tensor) for each in held), name
            assert len(held) == size


def test_ranks_that_share_a_key_head_hold_the_same_one(tmp_path):
    save_model(tmp_path, "qwen2")  # two key heads
    parts = parts_of(tmp_path, 4)
    keys = [part["layers.0.self_attn.k_proj.weight"] for part in parts]
    assert keys[0].equal(keys[1])
    assert keys[2].equal(keys[3])
    assert not keys[1].equal(keys[2])


@pytest.mark.parametrize("size", [2, 4])
def test_log_probabilities_are_those_of_the_whole_model(model, size):
    prompts = prompts_of(5)
    whole = prefill(engine_of(model, **MEMORY), prompts, sampling=LOGPROBS)
    split = prefill(
        engine_of(model, tensor_parallel_size=size, **MEMORY), prompts, sampling=LOGPROBS
    )
    assert split.tokens == whole.tokens
    for one, other in zip(whole.logprobs, split.logprobs, strict=True):
        assert one.top_tokens == other.top_tokens
        torch.testing.assert_close(
            torch.tensor(one.top), torch.tensor(other.top), rtol=0, atol=2e-5
        )


def test_a_rank_may_have_no_token_of_a_small_vocabulary(tmp_path):
    config = LlamaConfig(**SMALL | {"vocab_size": 40}, tie_word_embeddings=False)
    random_model(config).save_pretrained(tmp_path)
    assert [len(part["lm_head.weight"]) for part in parts_of(tmp_path, 4)] == [16, 16, 8, 0]
    prompts = [[1, 39, 5], [20, 31], [17] * 9]
    whole, split = (
        prefill(
            engine_of(tmp_path, tensor_parallel_size=size, **MEMORY), prompts, sampling=LOGPROBS
        )
        for size in (1, 4)
    )
    assert split.tokens == whole.tokens
    for one, other in zip(whole.logprobs, split.logprobs, strict=True):
        torch.testing.assert_close(
            torch.tensor(one.top), torch.tensor(other.top), rtol=0, atol=2e-5
        )


def test_a_rows_bits_do_not_depend_on_its_neighbours(model):
    prompts = prompts_of(9)
    crowd = prefill(engine_of(model, tensor_parallel_size=2, **MEMORY), prompts, sampling=LOGPROBS)
    for prompt, among in zip(prompts, crowd.logprobs, strict=True):
        engine = engine_of(model, tensor_parallel_size=2, **MEMORY)
        [alone] = prefill(engine, [prompt], sampling=LOGPROBS).logprobs
        assert (alone.top_tokens, alone.top) == (among.top_tokens, among.top)


@pytest.mark.parametrize("tokens", [64, 40], ids=["whole-prompts", "chunks"])
def test_sampled_rows_of_all_kinds_get_the_tokens_of_the_whole_model(model, paths, tokens):
    """Noise, penalties, minimum lengths, and a neighbour that is not finite."""
    random_ = msgspec.structs.replace(GREEDY, temperature=0.8)
    each = [
        random_,
        msgspec.structs.replace(random_, repetition_penalty=1.3, frequency_penalty=0.4),
        msgspec.structs.replace(random_, min_tokens=20, min_tokens_banned=list(range(80))),
        msgspec.structs.replace(GREEDY, presence_penalty=1.5, logit_bias={5: 3.0}),
        msgspec.structs.replace(random_, top_k=9, top_p=0.9, min_p=0.05),
    ]
    adapters = ["odd", None, "few", "one", "huge", None]

    def run(**options):
        harness = harness_of(model, paths, max_num_batched_tokens=tokens, **options)
        for i, prompt in enumerate(prompts_of(12)):
            harness.generate(
                f"r{i}",
                prompt,
                adapter=adapters[i % 6],
                sampling=msgspec.structs.replace(each[i % 5], seed=i),
                max_tokens=25,
                stop_token_ids=[],
            )
        harness.run()
        harness.assert_all_is_back()
        return [(harness.output(f"r{i}"), harness.end(f"r{i}").reason) for i in range(12)]

    expected = run(**MEMORY)
    assert [reason for _, reason in expected].count("error") == 2
    assert run(tensor_parallel_size=2, **MEMORY) == expected


def test_no_rank_answers_a_step_that_loads_before_all_have_read_the_files(model, paths):
    """Once it is answered, the store may remove them."""
    engines = engine_of(model, tensor_parallel_size=2, **MEMORY).engines
    step = Step(0, loads=[AdapterLoad(0, "few", paths["few"], list(range(40)))])
    first = threading.Thread(target=engines[0].execute, args=[step])
    first.start()
    first.join(0.2)
    assert first.is_alive()
    engines[1].execute(step)
    first.join()


def test_what_ranks_add_up_of_an_adapter_holds_up_no_step_without_it(model, tmp_path):
    """DoRA needs the lengths of whole rows, of which each rank has a part."""
    paths = save_several(tmp_path, model, {"dora": {"rank": 6, "vector": "magnitude"}})
    load = AdapterLoad(0, "dora", paths["dora"], list(range(40, 80)))
    join = Join(1, [(0, 1.0)], 0, [30, 31], GREEDY, 0, 3, None)

    def answers(engine, copy):
        prefill(engine, [[1]])
        without = [engine.execute(step).tokens for step in (Step(1, loads=[load]), Step(2))]
        copy()
        user = Step(3, joins=[join], chunks=[Chunk(1, 0, [4, 5, 6], True)])
        return without, engine.execute(user).tokens

    pair, may = engine_of(model, tensor_parallel_size=2, **MEMORY), threading.Event()
    slots = pair.engines[1]._lora
    fill = slots.fill
    slots.fill = lambda *adapter: may.wait(60) and fill(*adapter)
    assert answers(pair, may.set) == answers(engine_of(model, **MEMORY), lambda: None)


def test_the_memory_for_pages_is_divided_among_the_ranks(model):
    alone = engine_of(model, block_size=64, **MEMORY)
    pair = engine_of(model, block_size=64, tensor_parallel_size=2, **MEMORY)
    # Half the heads in each, so as many pages in half the memory.
    assert pair.ready().pages == alone.ready().pages


def test_a_model_that_cannot_be_split_so_is_refused_in_words(model):
    with pytest.raises(ConfigError, match=r"4 attention heads do not divide by it; use 1, 2 or 4"):
        engine_of(model, tensor_parallel_size=3)
