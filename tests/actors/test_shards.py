"""Every part of a model lies on some rank, and each query head beside its key head."""

import pytest

from weft.actors.adapters import granules
from weft.actors.adapters.base import MODULES, BaseShapes
from weft.actors.shards import BLOCK, Shard, Widths, shard
from weft.runtime.config import ConfigError

LLAMA_8B = Widths(heads=32, kv_heads=8, head_dim=128, intermediate=14336, vocabulary=128256)
QWEN_HALF = Widths(heads=14, kv_heads=2, head_dim=64, intermediate=4864, vocabulary=151936)
ODD = Widths(heads=12, kv_heads=3, head_dim=24, intermediate=1003, vocabulary=1009)
CASES = [
    *((LLAMA_8B, size) for size in (1, 2, 4, 8, 16, 32)),
    *((QWEN_HALF, size) for size in (1, 2, 14)),
    *((ODD, size) for size in (1, 3, 6, 12)),
]


def shards(widths, size):
    return [shard(widths, rank, size) for rank in range(size)]


@pytest.mark.parametrize(("widths", "size"), CASES)
def test_heads_neurons_and_tokens_are_each_on_one_rank(widths, size):
    parts = shards(widths, size)
    for count, spans in (
        (widths.heads, [part.heads for part in parts]),
        (widths.intermediate, [part.neurons for part in parts]),
        (widths.vocabulary, [part.tokens for part in parts]),
    ):
        assert [i for span in spans for i in range(span.start, span.end)] == list(range(count))


@pytest.mark.parametrize(("widths", "size"), CASES)
def test_a_query_head_finds_its_key_head_at_the_same_place_in_its_group(widths, size):
    for part in shards(widths, size):
        assert part.heads.size % part.kv_heads.size == 0
        group = part.heads.size // part.kv_heads.size
        for index, head in enumerate(range(part.heads.start, part.heads.end)):
            whole_model = head * widths.kv_heads // widths.heads
            assert part.kv_heads.start + index // group == whole_model


@pytest.mark.parametrize(("widths", "size"), CASES)
def test_ranks_have_nearly_the_same_work(widths, size):
    parts = shards(widths, size)
    assert len({part.heads.size for part in parts}) == 1
    assert len({part.kv_heads.size for part in parts}) == 1
    neurons = [part.neurons.size for part in parts]
    assert min(neurons) > 0
    assert max(neurons) - min(neurons) <= 2 * BLOCK
    for part in parts:
        assert part.tokens.size <= part.tokens_padded == parts[0].tokens_padded
        # Rank 0 cuts the padding off behind the last token.
        assert part.tokens.size in (0, part.tokens_padded) or part.tokens.end == widths.vocabulary


def test_spans_begin_at_whole_vectors():
    for part in shards(ODD, 6):
        assert part.neurons.start % BLOCK == 0
        assert part.tokens.size == 0 or part.tokens.start % BLOCK == 0


def test_a_rank_may_have_no_token_at_all():
    parts = shards(ODD._replace(vocabulary=70), 6)
    assert [part.tokens.size for part in parts] == [16, 16, 16, 16, 6, 0]
    assert {part.tokens_padded for part in parts} == {16}


def test_modules_are_split_by_rows_or_by_columns():
    part = shard(ODD, 1, 3)
    assert part.outputs("q_proj") == (96, 192)
    assert part.outputs("k_proj") == part.outputs("v_proj") == (24, 48)
    assert part.outputs("gate_proj") == part.outputs("up_proj") == part.neurons
    assert part.inputs("o_proj") == (96, 192)
    assert part.inputs("down_proj") == part.neurons
    assert part.outputs("o_proj") is part.outputs("down_proj") is part.inputs("q_proj") is None


def test_alone_a_rank_has_everything():
    part = shard(ODD, 0, 1)
    assert isinstance(part, Shard)
    assert (part.heads, part.kv_heads, part.neurons) == ((0, 12), (0, 3), (0, 1003))
    assert (part.tokens, part.tokens_padded) == ((0, 1009), 1009)


@pytest.mark.parametrize(
    ("widths", "size", "message"),
    [
        (QWEN_HALF, 4, "is 4: the model's 14 attention heads do not divide by it; use 1, 2 or 14"),
        (
            ODD,
            2,
            "is 2: the model's 3 key-value heads neither divide by it nor divide it; use 1, 3",
        ),
        (
            ODD._replace(intermediate=40),
            6,
            "intermediate size is 40, less than 16 each; use 1 or 3",
        ),
        (ODD._replace(heads=1, kv_heads=1), 2, "1 attention heads do not divide by it; use 1"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_with_those_that_do(widths, size, message):
    with pytest.raises(ConfigError) as refused:
        shard(widths, 0, size)
    assert message in str(refused.value)


@pytest.mark.parametrize(("widths", "size"), [*CASES, (ODD._replace(intermediate=1017), 6)])
def test_no_rank_has_more_of_an_adapter_than_the_first(widths, size):
    """So a runner makes room for as much as the scheduler may give it."""
    base = BaseShapes(1, 2048, widths.intermediate, widths.heads, widths.kv_heads, widths.head_dim)
    parts = shards(widths, size)
    for has_affine in (False, True):
        eight, twenty = granules.Size(8, has_affine), granules.Size(20, has_affine)
        for sizes in (*({module: eight} for module in MODULES), dict.fromkeys(MODULES, twenty)):
            most = granules.of_layer(sizes, base, parts)
            assert granules.of_layer(sizes, base, parts[:1]) == most
