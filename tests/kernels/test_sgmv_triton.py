"""In Triton's interpreter where there is no GPU. That bfloat16 is truncated there, not rounded."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from tests.kernels.paged_adapters import DEVICE, adapters
from weft.kernels.sgmv.triton import Plan, splits_of

if DEVICE == "cuda":
    pytestmark = pytest.mark.gpu

# Ranks by slot and part. The last slots lack parts; one has nothing.
RANKS = [[8, 16, 3], [1, 1, 1], [32, 24, 5], [30, None, 9], [None, 2, None], [None, None, None]]
# Output columns of each part.
SITES = {"qkv": (144, 16, 30), "gate-up": (61, 61), "one": (97,)}
# Rows of each segment, and their slots.
BATCHES = {
    "one": ([7], [0]),
    "distinct": ([1] * 6, range(6)),
    "uniform": ([3, 5, 4, 2, 4, 3], [2, 0, 3, 5, 1, 4]),
    "zipf": ([29, 9, 4, 2, 1], [3, 2, 4, 0, 1]),
    "identical": ([70], [2]),
    "empty": ([3, 0, 5, 0], [0, 1, 2, 3]),
    "edges": ([15, 16, 17, 31, 33], [0, 2, 0, 3, 1]),
    "base only": ([], []),
}
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 6e-2}


def starts_of(rows):
    """Two rows of the base come first."""
    return [2 + sum(rows[:i]) for i in range(len(rows) + 1)]


def bits(tensor):
    return tensor.cpu().contiguous().view(torch.uint8)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poison():
    """Memory that is allocated and not written is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def dots_row_by_row(monkeypatch):
    """A processor's matrix library, which the interpreter asks, sums rows in ways that depend on
    their place. What a GPU multiplies with does not.
    """
    monkeypatch.setattr(np, "matmul", lambda a, b, dtype: (a[:, :, None] * b).sum(1, dtype=dtype))


def check(rows, slots, columns, features, **options):
    made = adapters(RANKS, columns, features, **options)
    starts = starts_of(rows)
    x, y = made.batch(starts[-1] + 1)  # and a row of nobody's last
    expected = made.expected(y, x, starts, slots)
    actual = made.add(y, x, starts, slots)
    tolerance = TOLERANCE[made.dtype]
    torch.testing.assert_close(actual.float().cpu(), expected, rtol=tolerance, atol=tolerance)
    outside = [0, 1, -1]
    assert bits(actual[outside]).equal(bits(y[outside]))


@pytest.mark.parametrize(("rows", "slots"), BATCHES.values(), ids=BATCHES.keys())
def test_updates_agree_with_the_reference(rows, slots):
    check(rows, slots, SITES["qkv"], 200, rank_max=32)


@pytest.mark.parametrize("batch", ["zipf", "empty"])
def test_updates_in_several_blocks_of_ranks_agree_with_the_reference(batch):
    check(*BATCHES[batch], SITES["qkv"], 200, rank_max=64)


@pytest.mark.parametrize("features", [1, 128, 3200])
def test_updates_agree_with_the_reference_for_other_inputs(features):
    check([2, 20], [2, 0], SITES["gate-up"], features)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("rows", "slots"), BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("columns", SITES.values(), ids=SITES.keys())
@pytest.mark.parametrize("features", [1, 61, 3200])
def test_updates_agree_with_the_reference_at_large(features, columns, rows, slots, dtype):
    check(rows, slots, columns, features, dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 7, 8, 9, 65, 128, 511, 512])
@pytest.mark.parametrize("row_adapters", [1, 2])
def test_ranks_from_1_to_512_share_a_batch(rank, row_adapters):
    made = adapters([[rank], [8]], (300,), 130, rank_max=512, row_adapters=row_adapters)
    x, y = made.batch(6)
    expected = made.expected(y, x, [0, 3, 6], [0, 1])
    actual = made.add(y, x, [0, 3, 6], [0, 1])
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bit_types_agree_with_the_reference(dtype):
    check([5, 20], [2, 3], SITES["qkv"], 300, dtype=dtype)


def test_weights_may_have_another_type_than_rows():
    check([5, 1], [2, 0], SITES["qkv"], 200, weights_dtype=torch.bfloat16)


@pytest.mark.parametrize("page_granules", [1, 4, 64])
def test_pages_may_have_any_size(page_granules):
    check([5, 1], [2, 0], SITES["gate-up"], 200, page_granules=page_granules)


def test_pages_may_lie_past_the_reach_of_32_bits():
    pages_before = 2**31 // (64 * 1024)
    check(
        [5, 1], [2, 0], SITES["gate-up"], 200,
        weights_dtype=torch.bfloat16, page_granules=64, pages_before=pages_before,
    )  # fmt: skip


def test_adapters_of_larger_rank_than_a_block_agree_with_the_reference():
    made = adapters([[100], [8]], (140,), 60, rank_max=128)
    x, y = made.batch(4)
    actual = made.add(y, x, [0, 2, 4], [0, 1])
    torch.testing.assert_close(actual.cpu(), made.expected(y, x, [0, 2, 4], [0, 1]))


def test_an_adapter_may_have_as_many_ranks_as_are_configured():
    made = adapters([[24, 24, 24], [23, 8, 24]], (140, 20, 30), 60, rank_max=24)
    x, y = made.batch(8)
    actual = made.add(y, x, [0, 5, 8], [0, 1])
    expected = made.expected(y, x, [0, 5, 8], [0, 1])
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_may_have_other_ranks_and_parts_in_another_layer():
    layers = [[[40, None], [8, 8]], [[None, 3], [None, None]], [[70, 16], [1, None]]]
    made = adapters(layers, (140, 30), 60, rank_max=128)
    x, y = made.batch(9)
    starts, slots = [1, 4, 9], [0, 1]
    for layer in range(3):
        actual = made.add(y, x, starts, slots, layer=layer)
        expected = made.expected(y, x, starts, slots, layer=layer)
        torch.testing.assert_close(actual.cpu(), expected, rtol=1e-5, atol=1e-5)
        if layer == 1:
            assert bits(actual[4:]).equal(bits(y[4:]))


@pytest.mark.parametrize("rank_max", [32, 64], ids=["one block of ranks", "several"])
def test_a_part_without_an_adapter_stays_bit_equal(rank_max):
    made = adapters(RANKS, SITES["qkv"], 40, rank_max=rank_max)
    x, y = made.batch(5)
    y.fill_(-0.0)  # which 0 added to it would turn into 0
    actual = made.add(y, x, [0, 5], [3])  # has no second part
    assert bits(actual[:, 144:160]).equal(bits(y[:, 144:160]))
    assert actual[:, :144].ne(0).all()


SEVERAL = [[0, 2, -1], [1, -1, -1], [3, 0, 4], [2, 0, -1]]
WEIGHTS = [[0.25, 2.0, 9.0], [-1.0, 9.0, 9.0], [1.0, 0.5, 3.0], [1.0, 1.0, 9.0]]


def test_a_row_may_have_several_adapters_with_weights():
    made = adapters(RANKS, SITES["qkv"], 150, row_adapters=3)
    starts = starts_of([1, 20, 3, 1])
    x, y = made.batch(starts[-1])
    expected = made.expected(y, x, starts, SEVERAL, weights=WEIGHTS)
    actual = made.add(y, x, starts, SEVERAL, weights=WEIGHTS)
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-5, atol=2e-5)
    assert bits(actual[:2]).equal(bits(y[:2]))


def test_rows_of_several_adapters_are_bit_equal_alone_and_among_others(dots_row_by_row):
    made = adapters(RANKS, SITES["gate-up"], 150, row_adapters=3)
    starts = starts_of([1, 20, 3, 1])
    x, y = made.batch(starts[-1])
    together = made.add(y, x, starts, SEVERAL, weights=WEIGHTS)
    for i, row in [(0, 2), (1, 9), (2, 24), (3, 26)]:
        own = slice(row, row + 1)
        alone = made.add(y[own], x[own], [0, 1], SEVERAL[i : i + 1], weights=WEIGHTS[i : i + 1])
        assert bits(alone).equal(bits(together[own]))


@pytest.mark.parametrize("rank_max", [32, 64], ids=["one block of ranks", "several"])
def test_a_row_of_one_adapter_is_bit_equal_whether_others_have_several(dots_row_by_row, rank_max):
    made = adapters(RANKS, SITES["qkv"], 150, row_adapters=3, rank_max=rank_max)
    x, y = made.batch(24)
    for slot in range(len(RANKS)):
        plain = made.add(y, x, [0, 24], [slot])
        among = made.add(y, x, [0, 24], [[slot]], weights=[[1.0]])
        assert bits(among).equal(bits(plain))


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str
)
def test_a_row_is_bit_equal_alone_and_among_any_others(dots_row_by_row, dtype):
    made = adapters(RANKS, SITES["gate-up"], 1100, dtype=dtype)
    starts, slots = starts_of([1, 40, 1, 3]), [0, 2, 1, 3]
    x, y = made.batch(starts[-1])
    together = made.add(y, x, starts, slots)
    among_many = made.add(y, x, starts, slots, tokens_max=512)  # in larger chunks
    assert bits(among_many).equal(bits(together))
    for slot, row in [(0, 2), (2, 3), (2, 18), (2, 42), (1, 43), (3, 45)]:
        own = slice(row, row + 1)
        alone = made.add(y[own], x[own], [0, 1], [slot])
        assert bits(alone).equal(bits(together[own])), (slot, row)


def test_splits_are_summed_alike_by_one_program_and_by_many(dots_row_by_row):
    results = []
    for processors in (100, 1):  # one has enough to do without splitting
        torch.manual_seed(0)
        made = adapters(RANKS, SITES["one"], 3200, processors=processors)
        x, y = made.batch(24)
        results.append(made.add(y, x, [0, 20, 24], [2, 0], tokens_max=200))
    assert splits_of(3200) == (4, 7)
    assert bits(results[0]).equal(bits(results[1]))


def test_poisoned_rows_and_adapters_reach_nobody_else():
    made = adapters(RANKS, SITES["qkv"], 200)
    starts, slots = [2, 5, 8, 12], [0, 2, 1]
    x, y = made.batch(12)
    expected = made.add(y, x, starts, slots)
    x[[1, 6]] = float("nan")  # rows of the base and of an adapter
    actual = made.add(y, x, starts, slots)
    assert actual[6].isnan().all()
    others = [*range(6), *range(7, 12)]
    assert bits(actual[others]).equal(bits(expected[others]))


def captured(launch):
    """Return what replays a launch: on a GPU its graph, else the launch itself."""
    if DEVICE == "cpu":
        return launch
    launch()  # what is compiled on the way cannot be captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return graph.replay


def test_a_captured_launch_serves_steps_of_any_size():
    """Its grid is that of the largest step; the plan is read anew."""
    made = adapters(RANKS, SITES["gate-up"], 150, tokens=32)
    planner = made.lora.planner(32)
    host = np.zeros(planner.bounds.ints, dtype=np.int32)
    plan = Plan(torch.from_numpy(host).to(DEVICE, copy=True), planner.bounds, planner)
    x, y = made.batch(32)
    replay = captured(lambda: made.lora.add(y, x, 0, 0, plan))
    for rows, slots in ([1] * 5, [0, 2, 1, 3, 0]), ([], []), ([20, 3], [2, 3]), ([0], [1]):
        starts = starts_of(rows)
        x[:], y[:] = torch.randn(x.shape), torch.randn(y.shape)
        expected = made.add(y, x, starts, slots)
        counts = planner.lay_out(
            host, np.array(starts), np.array(slots, dtype=np.int64), made.lora.groups
        )
        plan.ints[: counts.ints] = torch.from_numpy(host)[: counts.ints]
        replay()
        assert bits(y).equal(bits(expected))


def test_a_slot_that_is_filled_again_keeps_no_trace():
    made = adapters([[40, 8], [8, 8]], (60, 30), 150)
    x, y = made.batch(5)
    made.add(y, x, [0, 3, 5], [0, 1])
    made.fill(0, [[None, 16]], made.tables.pages[0].tolist())
    actual = made.add(y, x, [0, 3, 5], [0, 1])
    expected = made.expected(y, x, [0, 3, 5], [0, 1])
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-5, atol=1e-5)
    assert bits(actual[:3, :60]).equal(bits(y[:3, :60]))


@pytest.mark.parametrize("tokens", [1, 256, 257, 300, 511, 512])
def test_scratch_memory_has_room_for_steps_of_any_size(tokens):
    """Steps of few tokens are cut into shorter chunks."""
    lora = adapters([[8]], SITES["one"], 130, tokens=tokens, dtype=torch.bfloat16).lora
    for most in {min(tokens, count) for count in (1, 8, 256, 512)}:
        bounds = lora.planner(most).bounds
        assert max(bounds.items) <= lora._scratch.arrivals.numel()
        assert bounds.rows * max(lora._forms.v_strides) <= lora._scratch.v.numel()
