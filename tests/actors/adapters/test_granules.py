import pytest
import torch

from tests.actors.adapters.folders import BASE, build, folder, tensor_name, tensors
from weft.actors.adapters import granules
from weft.actors.adapters.base import MODULES, BaseShapes, LinearShape
from weft.actors.runner.lora import at_once
from weft.actors.runner.own import Reader, Writer
from weft.kernels.sgmv.granules import Affine, Module, Tables

QWEN_7B = BaseShapes(
    num_hidden_layers=28,
    hidden_size=3584,
    intermediate_size=18944,
    num_attention_heads=28,
    num_key_value_heads=4,
)
LLAMA_8B = BaseShapes(
    num_hidden_layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_key_value_heads=8,
)
SITES = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


def layer(base, rank, *, modules=MODULES, size=1):
    sizes = dict.fromkeys(modules, granules.Size(rank))
    return granules.of_layer(sizes, base, base.shards(size))


@pytest.mark.parametrize(
    ("rank", "shape", "count"),
    [
        (8, LinearShape(128, 128), 2),
        (1, LinearShape(1, 1), 2),
        (9, LinearShape(129, 128), 2 * 3),
        (64, LinearShape(896, 4864), 8 * (7 + 38)),
    ],
)
def test_ranks_and_columns_are_rounded_up_to_whole_granules(rank, shape, count):
    assert granules.of_module(granules.Size(rank), shape) == count


def test_factors_and_offsets_take_a_granule_for_256_outputs():
    shape = LinearShape(896, 4864)
    plain = granules.of_module(granules.Size(8), shape)
    assert granules.of_module(granules.Size(8, has_affine=True), shape) == plain + 19


@pytest.mark.parametrize("base", [QWEN_7B, LLAMA_8B], ids=["qwen", "llama"])
def test_a_rank_that_fills_its_granules_costs_what_its_elements_do(base):
    elements = 16 * sum(sum(base.shape(module)) for module in MODULES)
    assert layer(base, 16) * granules.RANKS * granules.COLUMNS == elements


def test_an_adapter_costs_by_its_rank():
    assert layer(QWEN_7B, 64) == 4 * layer(QWEN_7B, 16) == 8 * layer(QWEN_7B, 8)


def test_ranks_share_an_adapter_as_they_share_the_base():
    """A of q, k, v, gate and up is on every device, as is B of o and down; the rest is divided."""
    first, second = QWEN_7B.shards(2)
    for module in MODULES:
        whole, half = QWEN_7B.shape(module), QWEN_7B.part(module, first)
        assert half == QWEN_7B.part(module, second)
        if module in ("o_proj", "down_proj"):
            assert half == LinearShape(whole.inputs // 2, whole.outputs)
        else:
            assert half == LinearShape(whole.inputs, whole.outputs // 2)


def test_a_rank_has_a_whole_kv_head_where_there_are_fewer_than_ranks():
    assert QWEN_7B.part("k_proj", QWEN_7B.shards(28)[5]).outputs == 128
    assert layer(QWEN_7B, 8, modules=("v_proj",), size=28) == 28 + 1


def test_the_rank_with_most_counts_where_they_differ():
    base = BaseShapes(
        num_hidden_layers=1, hidden_size=128, intermediate_size=1040, num_attention_heads=4
    )
    parts = [base.part("up_proj", shard).outputs for shard in base.shards(4)]
    assert parts == [272, 256, 256, 256]
    assert layer(base, 8, modules=("up_proj",), size=4) == 1 + 3


def test_the_layer_with_most_granules_counts():
    weights = tensors(rank=4) | {
        tensor_name("mlp.up_proj", layer=1): tensors()[tensor_name()],
        tensor_name("mlp.up_proj", "B", layer=1): torch.ones(12, 4).numpy(),
    }
    config = {"target_modules": ["q_proj", "down_proj", "up_proj"]}
    adapter = build(folder(config, weights))
    assert adapter.granules(BASE, BASE.shards(1)) == 4  # layer 1's, of two modules


@pytest.mark.parametrize("modules", [MODULES, ("k_proj", "up_proj"), ("o_proj",)], ids=len)
@pytest.mark.parametrize(("size", "rank"), [(1, 0), (2, 0), (2, 1), (4, 3)])
def test_a_device_lays_out_as_many_granules_as_were_counted(modules, size, rank):
    base = BaseShapes(
        num_hidden_layers=1,
        hidden_size=144,
        intermediate_size=520,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    sizes = {
        module: granules.Size(3 + 7 * place, has_affine=place % 2 == 1)
        for place, module in enumerate(modules)
    }
    shard = base.shards(size)[rank]
    sites = [
        [
            Module(
                part,
                torch.ones(sizes[module].rank, base.part(module, shard).inputs),
                torch.ones(base.part(module, shard).outputs, sizes[module].rank),
                1.0,
                Affine(*torch.ones(2, base.part(module, shard).outputs))
                if sizes[module].has_affine
                else None,
            )
            for part, module in enumerate(site)
            if module in sizes
        ]
        for site in SITES
    ]
    laid = Tables(slots=1, layers=1, sites=4, pages_max=1).lay_out(0, 0, sites, torch.float32)
    assert laid.granules == granules.of_layer(sizes, base, [shard])


class Tensors(dict):
    """An adapter's file, in memory."""

    @property
    def names(self):
        return self.keys()

    def tensor(self, name):
        return self[name]


@pytest.mark.parametrize(("size", "rank"), [(1, 0), (2, 0), (2, 1), (4, 3)])
@pytest.mark.parametrize("rows", [1, 9, 600])
def test_what_is_spread_fills_as_many_granules_as_were_counted(rows, size, rank):
    """On the rank with most: a page of one granule more would be somebody else's."""
    base = BaseShapes(
        num_hidden_layers=3,
        hidden_size=136,
        intermediate_size=520,
        num_attention_heads=4,
        head_dim=24,
        vocab_size=500,
        model_type="qwen3",
    )
    file = Tensors({name: torch.randn(width) for name, width in base.norms().items()})
    file.scales = {}
    for module in ("embed_tokens", "lm_head"):
        shape = base.shape(module)
        file[f"{module}.A"], file.scales[module] = torch.randn(12, shape.inputs), 1.0
        file[f"{module}.B"] = torch.randn(shape.outputs, 12)
        file[f"{module}.ids"] = torch.arange(rows, dtype=torch.int32)
        file[f"{module}.rows"] = torch.randn(rows, 136)
    norms = {136: 7, 24: 6}
    spread = granules.Spread(12, 12, rows, rows, norms)
    count = granules.most_of_any_layer([], spread, base, base.shards(size))
    arena = torch.full((3, count, 1, 8, 128), float("nan"))
    shard = base.shards(size)[rank] if size > 1 else None
    own = Reader(500, shard, rank, size).load(file, Writer(arena, range(count), 0, at_once))
    used = 3 * count - arena.isnan().all(dim=-1).all(dim=-1).sum()
    assert used <= spread.granules(base, base.shards(size)) <= 3 * count
    if size == 1:
        assert used == spread.granules(base, base.shards(1))
    assert own.head_rows.here.size <= own.head_rows.each
