import numpy as np
import pytest

from tests.actors.scheduler_harness import GREEDY
from weft.actors.runner.rows import RowTable
from weft.actors.runner.sums import BASE, Sums
from weft.runtime.messages import Chunk, Join, Step

PAGE_TOKENS = 4


@pytest.fixture
def table():
    return RowTable(6, pages_max=5, page_tokens=PAGE_TOKENS, row_adapters=3)


def join(row, *, pages, slot=None, position=0, adapters=(), lora_start=0):
    adapters = list(adapters) if slot is None else [(slot, 1.0)]
    return Join(row, adapters, position, pages, GREEDY, 0, 10, None, lora_start)


def lay_out(table, **changes):
    step = Step(0, **changes)
    table.apply(step)
    return table.lay_out(step)


def segments(batch):
    """Where each begins and the last one ends, their slots, and their weights."""
    own = batch.lora_slots >= 0
    slots = [row[has].tolist() for row, has in zip(batch.lora_slots, own, strict=True)]
    weights = [row[has].tolist() for row, has in zip(batch.lora_weights, own, strict=True)]
    return batch.lora_starts.tolist(), slots, weights


def test_a_batch_is_sorted_by_adapter_with_the_base_first(table):
    batch = lay_out(
        table,
        joins=[
            join(0, pages=[7], slot=2),
            join(1, pages=[3]),
            join(2, pages=[5], slot=0),
            join(3, pages=[1], slot=2),
        ],
        chunks=[
            Chunk(0, 0, [10, 11], True),
            Chunk(1, 0, [20], True),
            Chunk(2, 0, [30, 31, 32], False),
            Chunk(3, 0, [40], True),
        ],
    )
    assert batch.tokens.tolist() == [20, 10, 11, 40, 30, 31, 32]
    assert batch.positions.tolist() == [0, 0, 1, 0, 0, 1, 2]
    assert batch.kv_slots.tolist() == [12, 28, 29, 4, 20, 21, 22]
    assert batch.starts.tolist() == [0, 1, 3, 4, 7]
    assert segments(batch) == ([1, 4, 7], [[2], [0]], [[1], [1]])
    # Row 2 has more to come; the others sample, in ascending order of rows.
    assert batch.sampled_rows.tolist() == [0, 1, 3]
    assert batch.sampled.tolist() == [2, 0, 3]


def test_rows_with_more_adapters_come_later_and_equal_sums_are_one_segment(table):
    three = [(2, 1.0), (0, 0.5), (1, -1.0)]
    batch = lay_out(
        table,
        joins=[
            join(0, pages=[1], adapters=three),
            join(1, pages=[2], adapters=[(2, 1.0), (0, 0.5)]),
            join(2, pages=[3], adapters=three),
            join(3, pages=[4], adapters=[(2, 0.25)]),
            join(4, pages=[5], slot=2),
            join(5, pages=[6]),
        ],
        chunks=[Chunk(row, 0, [row], True) for row in range(6)],
    )
    assert batch.tokens.tolist() == [5, 3, 4, 1, 0, 2]
    slots, weights = [[2], [2], [2, 0], [2, 0, 1]], [[0.25], [1], [1, 0.5], [1, 0.5, -1]]
    assert segments(batch) == ([1, 2, 3, 4, 6], slots, weights)
    assert batch.adapter_slots == table.adapter_slots == {0, 1, 2}
    assert batch.row_adapters == 3

    batch = lay_out(table, leaves=[0, 2, 3], joins=[join(3, pages=[7], adapters=[(1, 2.0)])])
    assert batch.tokens.tolist() == [~5, ~4, ~1]
    assert segments(batch) == ([1, 2, 3], [[2], [2, 0]], [[1], [1, 0.5]])
    assert table.adapter_slots == {0, 1, 2}


def test_where_its_adapters_begin_a_chunk_becomes_two_entries(table):
    batch = lay_out(
        table,
        joins=[
            join(0, pages=[1, 2], slot=1, lora_start=3),
            join(1, pages=[3], slot=1, lora_start=2),
            join(2, pages=[4], slot=1),
            join(3, pages=[5], slot=1, lora_start=4),
        ],
        chunks=[
            Chunk(0, 0, [10, 11, 12, 13, 14], True),
            Chunk(1, 0, [20, 21], False),
            Chunk(2, 0, [30], True),
            Chunk(3, 0, [40, 41], False),
        ],
    )
    assert batch.tokens.tolist() == [10, 11, 12, 20, 21, 40, 41, 13, 14, 30]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 0, 1, 3, 4, 0]
    assert batch.kv_slots.tolist() == [4, 5, 6, 12, 13, 20, 21, 7, 8, 16]
    assert batch.starts.tolist() == [0, 3, 5, 7, 9, 10]
    assert batch.page_table[[0, 3]].tolist() == [[1, 2, 0, 0, 0]] * 2
    assert segments(batch) == ([7, 10], [[1]], [[1]])
    assert batch.sampled_rows.tolist() == [0, 2]
    assert batch.tokens[batch.sampled].tolist() == [14, 30]
    assert batch.sampled_positions.tolist() == [5, 1]

    table.feed(np.array([0, 2]), np.array([15, 31]))
    batch = lay_out(table, chunks=[Chunk(1, 2, [22], True), Chunk(3, 2, [42, 43], False)])
    assert batch.tokens.tolist() == [42, 43, 15, 31, 22]
    assert batch.positions.tolist() == [2, 3, 5, 1, 2]
    assert segments(batch) == ([2, 5], [[1]], [[1]])


def test_sums_of_rows_that_come_and_go_are_those_that_they_joined_with():
    rng = np.random.default_rng(0)
    sums, numbers, adapters = Sums(6, 3), {}, {}
    for _ in range(300):
        row = int(rng.integers(6))
        if row in numbers:
            sums.drop(numbers.pop(row))
            del adapters[row]
        else:
            slots = rng.permutation(4)[: rng.integers(4)].tolist()
            adapters[row] = [(slot, float(rng.choice([1, 2]))) for slot in slots]
            numbers[row] = sums.take(adapters[row])
        used = np.unique([number for number in numbers.values() if number != BASE]).astype(int)
        found = {
            number: [(slot, weight) for slot, weight in zip(*terms, strict=True) if slot >= 0]
            for number, *terms in zip(used, *sums.tables(used), strict=True)
        } | {BASE: []}
        assert {row: found[number] for row, number in numbers.items()} == adapters
        counts = [len(found[number]) for number in used]
        assert counts == sorted(counts)
        assert sums.slots == {slot for terms in adapters.values() for slot, _ in terms}


def test_a_row_that_has_sampled_feeds_its_own_token_at_its_next_position(table):
    batch = lay_out(table, joins=[join(4, pages=[2])], chunks=[Chunk(4, 0, [1, 2, 3], True)])
    assert batch.sampled_positions.tolist() == [3]
    table.feed(np.array([4]), np.array([77]))
    batch = lay_out(table)
    assert (batch.tokens.tolist(), batch.positions.tolist()) == ([77], [3])
    table.feed(np.array([4]), np.array([78]))
    batch = lay_out(table, page_rows=[4], page_ids=[0])
    assert (batch.tokens.tolist(), batch.kv_slots.tolist()) == ([78], [0])


def test_a_row_whose_token_nobody_has_told_feeds_its_own_name(table):
    rows = [1, 4]
    lay_out(
        table,
        joins=[join(row, pages=[row]) for row in rows],
        chunks=[Chunk(row, 0, [5], True) for row in rows],
    )
    for _ in range(2):
        assert (~lay_out(table).tokens).tolist() == rows


def test_a_step_in_which_all_feed_one_token_and_sample_is_a_decode(table):
    first = lay_out(table, joins=[join(0, pages=[1])], chunks=[Chunk(0, 0, [1, 2], True)])
    second = lay_out(table, joins=[join(1, pages=[2])], chunks=[Chunk(1, 0, [3], False)])
    third = lay_out(table, chunks=[Chunk(1, 1, [4], True)])
    assert [batch.is_decode for batch in (first, second, third)] == [False, False, True]


def test_a_row_between_two_chunks_does_not_decode(table):
    lay_out(table, joins=[join(0, pages=[2])], chunks=[Chunk(0, 0, [1, 2], False)])
    assert lay_out(table) is None
    batch = lay_out(table, chunks=[Chunk(0, 2, [3], True)])
    assert (batch.tokens.tolist(), batch.positions.tolist()) == ([3], [2])


def test_decodes_and_chunks_share_a_batch(table):
    lay_out(table, joins=[join(5, pages=[2], slot=1)], chunks=[Chunk(5, 0, [1], True)])
    table.feed(np.array([5]), np.array([9]))
    batch = lay_out(table, joins=[join(0, pages=[3], slot=1)], chunks=[Chunk(0, 0, [4, 5], True)])
    assert sorted(batch.tokens.tolist()) == [4, 5, 9]
    assert segments(batch) == ([0, 3], [[1]], [[1]])
    assert batch.sampled_rows.tolist() == [0, 5]
    assert batch.tokens[batch.sampled].tolist() == [5, 9]


def test_a_prefix_that_is_cached_is_neither_fed_nor_written(table):
    batch = lay_out(
        table, joins=[join(1, pages=[6, 4], position=4)], chunks=[Chunk(1, 4, [50, 51], True)]
    )
    assert batch.positions.tolist() == [4, 5]
    assert batch.kv_slots.tolist() == [16, 17]
    assert batch.page_table[0, :2].tolist() == [6, 4]


def test_a_row_can_leave_and_be_joined_by_another_in_one_step(table):
    lay_out(table, joins=[join(0, pages=[2], slot=1)], chunks=[Chunk(0, 0, [1], True)])
    assert (table.joined, table.pages, table.adapter_slots) == (1, 1, {1})
    batch = lay_out(
        table, leaves=[0], joins=[join(0, pages=[3, 4])], chunks=[Chunk(0, 0, [8], True)]
    )
    assert (table.joined, table.pages, table.adapter_slots) == (1, 2, set())
    assert (batch.tokens.tolist(), batch.kv_slots.tolist()) == ([8], [12])
    assert segments(batch) == ([1], [], [])
    assert not batch.has_adapters


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"leaves": [1]}, id="leaves-without-joining"),
        pytest.param({"joins": [join(0, pages=[3])]}, id="joins-twice"),
        pytest.param({"chunks": [Chunk(1, 0, [1], True)]}, id="chunk-of-no-row"),
        pytest.param({"chunks": [Chunk(0, 1, [1], True)]}, id="chunk-at-a-wrong-position"),
        pytest.param({"chunks": [Chunk(0, 2, [1, 2, 3], True)]}, id="token-without-a-page"),
    ],
)
def test_a_step_that_breaks_the_rules_is_an_assertion(table, changes):
    lay_out(table, joins=[join(0, pages=[2])], chunks=[Chunk(0, 0, [1, 2], False)])
    with pytest.raises(AssertionError):
        lay_out(table, **changes)
