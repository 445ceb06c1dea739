import numpy as np
import pytest

from weft.kernels.sgmv.plan import BLOCKS, HEADER_INTS, UNIT_INTS, Planner

BLOCK_RANKS = (64, 16)


def planner(**changes):
    options = {
        "tokens_max": 300, "segments_max": 40, "chunk_rows": 16, "block_ranks": BLOCK_RANKS,
        "ranks_max": (192, 64), "row_adapters_max": 1,
    }  # fmt: skip
    return Planner(**(options | changes))


def laid_out(made, starts, slots, groups, weights=None):
    ints = np.full(made.bounds.ints + 100, 10**6, dtype=np.int32)
    starts, slots = np.array(starts), np.array(slots, dtype=np.int64)
    counts = made.lay_out(ints, starts, slots, np.array(groups), weights)
    assert (ints[counts.ints :] == 10**6).all()
    return ints, counts


def units(ints):
    return ints[HEADER_INTS : HEADER_INTS + UNIT_INTS * ints[1]].reshape(-1, UNIT_INTS)


def items(ints, site):
    start, count = ints[2 + 2 * site : 4 + 2 * site]
    return [(int(i) // BLOCKS, int(i) % BLOCKS) for i in ints[start : start + count]]


def random_step(rng, tokens_max, segments_max, slots):
    segments = rng.integers(0, segments_max + 1)
    base, *ends = np.sort(rng.integers(0, tokens_max + 1, segments + 1))
    return np.array([base, *ends]), rng.integers(0, slots, segments)


def test_chunks_cover_every_row_of_every_segment_once():
    ints, counts = laid_out(planner(), [3, 4, 4, 40, 72], [1, 0, 2, 0], np.ones((3, 2), dtype=int))
    assert counts.chunks == 1 + 3 + 2
    rows = [(row, rows, slot) for row, rows, slot in units(ints)[:, :3].tolist()]
    assert rows == [(3, 1, 1), (4, 16, 2), (20, 16, 2), (36, 4, 2), (40, 16, 0), (56, 16, 0)]


def test_rows_of_v_follow_one_another():
    ints, counts = laid_out(planner(), [3, 4, 40], [0, 1], np.ones((2, 2), dtype=int))
    table = units(ints)
    assert table[:, 3].tolist() == [0, 1, 17, 33]
    assert counts.rows == 37


def test_items_are_the_blocks_of_ranks_of_each_unit():
    groups = [[9, 1], [0, 3], [24, 0]]  # of 8 ranks: a block of 64 has 8 groups, one of 16 has 2
    ints, counts = laid_out(planner(), [0, 1, 2, 3], [0, 1, 2], groups)
    assert items(ints, 0) == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]
    assert items(ints, 1) == [(0, 0), (1, 0), (1, 1)]
    assert counts.items == (5, 3)


def test_units_of_one_block_at_most_are_their_own_items():
    ints, _ = laid_out(planner(), [0, 1, 2, 3], [0, 1, 2], [[8, 0], [0, 2], [1, 1]])
    assert items(ints, 0) == [(0, 0), (2, 0)]
    assert items(ints, 1) == [(1, 0), (2, 0)]


def test_further_adapters_of_a_chunk_are_linked_in_their_order():
    slots = [[5, 2, -1], [1, -1, -1], [3, 0, 4]]
    weights = np.array([[1, 2, 0], [3, 0, 0], [4, 5, 6]], dtype=np.float32)
    made = planner(row_adapters_max=3)
    ints, counts = laid_out(made, [0, 20, 21, 22], slots, np.ones((6, 2), dtype=int), weights)
    table = units(ints)
    assert counts.chunks == 4
    assert len(table) == 4 + 3 + 1
    chains = []
    for chunk in range(counts.chunks):
        chain, unit = [], chunk
        while unit >= 0:
            assert table[unit, :2].tolist() == table[chunk, :2].tolist()
            chain.append((int(table[unit, 2]), float(table[unit, 4:5].view(np.float32)[0])))
            unit = int(table[unit, 5])
        chains.append(chain)
    assert chains == [[(5, 1), (2, 2)]] * 2 + [[(1, 3)], [(3, 4), (0, 5), (4, 6)]]


@pytest.mark.parametrize("row_adapters", [1, 3])
def test_no_step_within_the_limits_exceeds_the_bounds(row_adapters):
    rng = np.random.default_rng(0)
    for _ in range(300):
        tokens, segments = rng.integers(1, 200), rng.integers(1, 30)
        made = planner(
            tokens_max=tokens, segments_max=segments, row_adapters_max=row_adapters,
            chunk_rows=int(rng.choice([16, 32])),
        )  # fmt: skip
        starts, first = random_step(rng, tokens, segments, 9)
        slots = rng.integers(-1, 9, (len(first), row_adapters))
        slots[:, 0] = first
        groups = rng.integers(0, 9, (9, 2)) * [3, 1]
        weights = np.ones(slots.shape, dtype=np.float32)
        ints, counts = laid_out(made, starts, slots, groups, weights)
        for have, may in zip(counts.items, made.bounds.items, strict=True):
            assert have <= may
        assert counts.ints <= made.bounds.ints
        assert counts.chunks <= made.bounds.chunks
        assert counts.rows <= made.bounds.rows
        covered = [r for row, n in units(ints)[: ints[0], :2].tolist() for r in range(row, row + n)]
        assert sorted(covered) == list(range(starts[0], starts[-1]))


def test_a_step_that_exceeds_the_limits_is_a_bug():
    with pytest.raises(AssertionError, match="exceeds"):
        laid_out(planner(tokens_max=4), [0, 1, 2, 3, 4, 5], [0] * 5, [[1, 1]])


def test_a_segment_without_an_adapter_is_a_bug():
    with pytest.raises(AssertionError, match="no adapter"):
        laid_out(planner(), [0, 2], [-1], [[1, 1]])
