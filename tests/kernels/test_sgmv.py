import pytest
import torch

from weft.kernels.sgmv import reference
from weft.kernels.sgmv.reference import Part
from weft.kernels.sgmv.segments import lay_out, sgmv

# Row counts of each segment: where segmented kernels go wrong.
SEGMENTS = {
    "one": [7],
    "distinct": [1] * 9,
    "skewed": [1, 40, 2],
    "empty": [3, 0, 5, 0],
    "edges": [15, 16, 17, 31, 33],
    "nothing": [0],
}
# The parts that share an input, as columns of the output: q, k and v; gate and up; one alone.
SITES = {"qkv": (48, 16, 16), "gate-up": (61, 61), "one": (97,)}
SLOTS = 5


def random_slots(columns, features):
    """Adapters of mixed ranks: one has every part, one lacks some, one has none at all."""
    ranks = [[8, 16, 3], [1, 1, 1], [64, None, 5], [None, 2, None], [None, None, None]]
    slots = []
    for slot in range(SLOTS):
        parts, column = [], 0
        for width, rank in zip(columns, ranks[slot], strict=False):
            if rank is not None:
                a = torch.randn(rank, features) / features**0.5
                parts.append(Part(a, torch.randn(width, rank), column))
            column += width
        slots.append(parts)
    return slots


def definition(y, x, starts, slots, weights):
    """Each row by itself, with the update of its adapter as one dense matrix."""
    y = y.double()
    for i, slot in enumerate(slots):
        for row in range(starts[i], starts[i + 1]):
            for a, b, column in weights[slot] if slot >= 0 else []:
                delta = b.double() @ a.double()
                y[row, column : column + len(b)] += delta @ x[row].double()
    return y.float()


def starts_of(rows):
    return [sum(rows[:i]) for i in range(len(rows) + 1)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("rows", SEGMENTS.values(), ids=SEGMENTS.keys())
@pytest.mark.parametrize("columns", SITES.values(), ids=SITES.keys())
@pytest.mark.parametrize("features", [1, 61, 64])
def test_reference_and_segments_agree_with_the_definition(features, columns, rows):
    weights = random_slots(columns, features)
    slots = [i % (SLOTS + 1) - 1 for i in range(1, len(rows) + 1)]  # 0, 1, .., 4, -1, 0, ..
    starts = starts_of(rows)
    x, y = torch.randn(sum(rows), features), torch.randn(sum(rows), sum(columns))
    expected = definition(y, x, starts, slots, weights)

    actual = y.clone()
    reference.sgmv(actual, x, starts, slots, weights)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)

    actual = y.clone()
    sgmv(actual, x, starts, slots, [lay_out(parts) for parts in weights])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


def test_one_adapter_in_two_segments_updates_both():
    weights = random_slots((8,), 16)
    x, y = torch.randn(6, 16), torch.zeros(6, 8)
    sgmv(y, x, [0, 2, 4, 6], [0, -1, 0], [lay_out(parts) for parts in weights])
    whole = torch.zeros(6, 8)
    reference.sgmv(whole, x, [0, 6], [0], weights)
    torch.testing.assert_close(y[[0, 1, 4, 5]], whole[[0, 1, 4, 5]])
    assert y[2:4].eq(0).all()


def test_rows_before_the_first_segment_stay_bit_equal():
    weights = random_slots((8,), 16)
    x, y = torch.randn(6, 16), torch.randn(6, 8)
    before = y.clone()
    sgmv(y, x, [4, 6], [0], [lay_out(parts) for parts in weights])
    assert y[:4].equal(before[:4])
    assert not y[4:].equal(before[4:])


def test_columns_without_a_part_stay_bit_equal():
    parts = [Part(torch.randn(4, 16), torch.randn(8, 4), 8)]  # of three parts the middle one
    x, y = torch.randn(3, 16), torch.randn(3, 24)
    before = y.clone()
    sgmv(y, x, [0, 3], [0], [lay_out(parts)])
    assert y[:, :8].equal(before[:, :8])
    assert y[:, 16:].equal(before[:, 16:])


def test_slots_and_rows_of_nan_reach_nobody_else():
    weights = random_slots((16, 16), 24)
    sites = [lay_out(parts) for parts in weights]
    x, y = torch.randn(12, 24), torch.randn(12, 32)
    starts, slots = [0, 3, 6, 9, 12], [-1, 0, 1, 2]
    expected = y.clone()
    sgmv(expected, x, starts, slots, sites)

    for part in weights[1]:
        part.b.fill_(float("nan"))  # an adapter in the batch
    weights[3][0].a.fill_(float("nan"))  # an adapter that nobody uses
    poisoned = x.clone()
    poisoned[1] = poisoned[10] = float("nan")  # rows of the base and of an adapter
    sgmv(y, poisoned, starts, slots, [lay_out(parts) for parts in weights])
    assert y[6:9].isnan().all()
    assert y[10, :16].isnan().all()  # the third adapter has the first part
    others = [0, 1, 2, 3, 4, 5, 9, 11]
    assert y[others].equal(expected[others])


def test_a_slot_without_parts_has_no_site():
    assert lay_out([]) is None


def test_a_segment_is_bit_equal_whatever_the_other_segments_are():
    weights = random_slots((48, 16, 16), 61)
    sites = [lay_out(parts) for parts in weights]
    x = torch.randn(40, 61)
    alone = torch.zeros(9, 80)
    sgmv(alone, x[20:29], [0, 9], [0], sites)
    among = torch.zeros(40, 80)
    sgmv(among, x, [2, 20, 29, 33, 40], [1, 0, 2, 3], sites)
    assert among[20:29].equal(alone)


def test_a_row_is_near_alone_and_among_others_of_its_adapter():
    """Near, not equal: the matrix library sums in another order for few rows than for many."""
    weights = random_slots((48, 16, 16), 61)
    sites = [lay_out(parts) for parts in weights]
    x = torch.randn(40, 61)
    together = torch.zeros(40, 80)
    sgmv(together, x, [0, 40], [0], sites)
    for i in range(40):
        alone = torch.zeros(1, 80)
        sgmv(alone, x[i : i + 1], [0, 1], [0], sites)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-5)
