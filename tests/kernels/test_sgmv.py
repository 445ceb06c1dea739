import numpy as np
import pytest
import torch

from weft.kernels.sgmv import cpu, reference, segments
from weft.kernels.sgmv.granules import (
    Affine,
    Module,
    Tables,
    pack,
    pack_affine,
    typed,
    unpack,
    unpack_affine,
)
from weft.kernels.sgmv.packing import write
from weft.kernels.sgmv.reference import Part
from weft.kernels.sgmv.segments import Segments

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
QKV = (48, 16, 16)
SITES = {"qkv": QKV, "gate-up": (61, 61), "one": (297,)}
FEATURES = [1, 7, 61, 128, 300]
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
                b = torch.randn(width, rank)
                # Some of the modules have one, and not all of a site.
                has_affine = (slot + len(parts)) % 2 == 0
                affine = Affine(torch.randn(width), torch.randn(width)) if has_affine else None
                parts.append(Part(a, b, column, affine=affine))
            column += width
        slots.append(parts)
    return slots


def definition(y, x, starts, slots, parts, weights):
    """Each row by itself, with the update of its adapter as one dense matrix."""
    y = y.double()
    for i, (slot, weight) in enumerate(zip(slots, weights, strict=True)):
        for row in range(starts[i], starts[i + 1]):
            for a, b, column, scale, affine in parts[slot] if slot >= 0 else []:
                delta = weight * scale * b.double() @ a.double()
                columns = slice(column, column + len(b))
                y[row, columns] += delta @ x[row].double()
                if affine is not None:
                    y[row, columns] = affine.factor * y[row, columns] + weight * affine.offset
    return y.float()


def starts_of(rows):
    return [sum(rows[:i]) for i in range(len(rows) + 1)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Site:
    """Adapters at one site, in scattered pages of an arena that is NaN elsewhere."""

    PAGES_MAX = 64  # of a slot
    PAGE_GRANULES = 2
    LAYER, SITE = 1, 2  # of two layers and three sites; nothing is at the others

    def __init__(self, make, slots, columns, dtype=torch.float32):
        page_bytes = self.PAGE_GRANULES * 1024 * dtype.itemsize
        memory = torch.full((2, slots * self.PAGES_MAX, page_bytes // 4), float("nan"))
        self.arena = typed(memory.view(torch.uint8), dtype)
        self.tables = Tables(slots, layers=2, sites=3, pages_max=self.PAGES_MAX)
        self.lora = make(self.arena, self.tables, [(), (), columns])
        self.starts = [sum(columns[:i]) for i in range(len(columns))]
        order = torch.randperm(slots * self.PAGES_MAX, generator=torch.Generator().manual_seed(1))
        self.pages = order.view(slots, self.PAGES_MAX).tolist()

    def set(self, slot, parts):
        self.tables.clear(slot, self.pages[slot])
        modules = [
            Module(self.starts.index(part.column), part.a, part.b, part.scale, part.affine)
            for part in parts
        ]
        sites = [[], [], modules]
        laid = self.tables.lay_out(slot, self.LAYER, sites, self.arena.dtype)
        write(self.arena, self.LAYER, self.pages[slot], laid)

    def add(self, y, x, segments):
        self.lora.add(y, x, self.LAYER, self.SITE, segments)


@pytest.fixture(params=["segments", "native"])
def table_of(request):
    """A function from the parts of each slot to a site of one implementation or the other."""
    if request.param == "native" and cpu.library() is None:
        pytest.skip("no C compiler")
    make = segments.PagedLora if request.param == "segments" else cpu.PagedLora

    def fill(weights, columns, dtype=torch.float32):
        site = Site(make, len(weights), columns, dtype)
        for slot, parts in enumerate(weights):
            site.set(slot, parts)
        return site

    return fill


@pytest.mark.parametrize(("ranks", "columns"), [(1, 1), (8, 128), (9, 129), (20, 300)])
def test_packing_pads_with_zeros_and_unpacking_undoes_it(ranks, columns):
    matrix = torch.randn(ranks, columns)
    granules = pack(matrix)
    assert granules.shape == (-(-columns // 128) * -(-ranks // 8), 8, 128)
    back = unpack(granules, -(-ranks // 8))
    assert back[:ranks, :columns].equal(matrix)
    assert back.count_nonzero() == matrix.count_nonzero()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("columns", "count"), [(1, 1), (128, 1), (129, 1), (256, 1), (600, 3)])
def test_affines_keep_every_bit_in_weights_of_any_type(columns, count, dtype):
    affine = Affine(torch.randn(columns), torch.randn(columns))
    packed = pack_affine(affine, dtype)
    assert packed.shape == (count, 8, 128)
    assert packed.dtype == dtype
    back = unpack_affine(packed, columns)
    assert back.factor.equal(affine.factor)
    assert back.offset.equal(affine.offset)


@pytest.mark.parametrize("rows", SEGMENTS.values(), ids=SEGMENTS.keys())
@pytest.mark.parametrize("columns", SITES.values(), ids=SITES.keys())
@pytest.mark.parametrize("features", FEATURES)
def test_the_reference_agrees_with_the_definition(features, columns, rows):
    weights = random_slots(columns, features)
    slots = [i % (SLOTS + 1) - 1 for i in range(len(rows))]  # -1, 0, .., 4, -1, ..
    starts = starts_of(rows)
    factors = [(1.0, -0.5, 2.0)[i % 3] for i in range(len(rows))]
    x, y = torch.randn(sum(rows), features), torch.randn(sum(rows), sum(columns))
    expected = definition(y, x, starts, slots, weights, factors)
    reference.sgmv(y, x, starts, slots, weights, factors)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", SEGMENTS.values(), ids=SEGMENTS.keys())
@pytest.mark.parametrize("columns", SITES.values(), ids=SITES.keys())
@pytest.mark.parametrize("features", FEATURES)
def test_tables_agree_with_the_reference(table_of, features, columns, rows):
    weights = random_slots(columns, features)
    slots = [i % SLOTS for i in range(len(rows))]
    starts = [2 + start for start in starts_of(rows)]  # two rows of the base come first
    x, y = torch.randn(starts[-1], features), torch.randn(starts[-1], sum(columns))
    factors = [(1.0, -0.5, 2.0)[i % 3] for i in range(len(rows))]
    expected = y.clone()
    reference.sgmv(expected, x, starts, slots, weights, factors)
    table_of(weights, columns).add(y, x, Segments(starts, slots, factors))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)
    assert y[:2].equal(expected[:2])


def test_one_adapter_in_two_segments_updates_both(table_of):
    weights = random_slots((8,), 16)
    x, y = torch.randn(6, 16), torch.zeros(6, 8)
    table_of(weights, (8,)).add(
        y, x, Segments([0, 2, 4, 6], [0, 4, 0])
    )  # the fifth has nothing here
    whole = torch.zeros(6, 8)
    reference.sgmv(whole, x, [0, 6], [0], weights)
    torch.testing.assert_close(y[[0, 1, 4, 5]], whole[[0, 1, 4, 5]])
    assert y[2:4].eq(0).all()


def test_rows_of_several_adapters_get_one_after_another(table_of):
    parts = random_slots(QKV, 61)
    slots = np.array([[1, -1, -1], [3, 0, -1], [2, 0, -1], [0, 2, 1]])
    weights = np.array([[2, 9, 9], [1, 0.5, 9], [-1, 1, 9], [1, 0.25, 3]], dtype=np.float32)
    starts = np.array([2, 5, 6, 30, 31])
    x, y = torch.randn(31, 61), torch.randn(31, sum(QKV))
    expected, before = y.clone(), y.clone()
    for i, start in enumerate(starts[:-1]):
        for slot, weight in zip(slots[i].tolist(), weights[i].tolist(), strict=True):
            reference.sgmv(expected, x, [start, starts[i + 1]], [slot], parts, [weight])
    table = table_of(parts, QKV)
    table.add(y, x, Segments(starts, slots, weights))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)
    assert y[:2].equal(before[:2])
    alone = before[9:10].clone()
    table.add(alone, x[9:10], Segments([0, 1], slots[2:3], weights[2:3]))
    torch.testing.assert_close(alone[0], y[9], rtol=1e-5, atol=1e-5)


def test_columns_without_a_part_stay_bit_equal(table_of):
    parts = [Part(torch.randn(4, 16), torch.randn(7, 4), 8)]  # of three parts the middle one
    x, y = torch.randn(3, 16), torch.randn(3, 24)
    before = y.clone()
    table_of([parts], (8, 7, 9)).add(y, x, Segments([0, 3], [0]))
    others = [*range(8), *range(15, 24)]
    assert y[:, others].equal(before[:, others])
    assert y[:, 8:15].ne(before[:, 8:15]).all()


def test_a_slot_that_is_set_again_keeps_no_trace(table_of):
    weights = random_slots(QKV, 61)
    x = torch.randn(5, 61)
    for parts in (weights[1], weights[3], weights[4]):
        table, fresh = table_of(weights, QKV), table_of([parts], QKV)
        table.set(0, parts)
        y, expected = torch.zeros(5, 80), torch.zeros(5, 80)
        table.add(y, x, Segments([0, 5], [0]))
        fresh.add(expected, x, Segments([0, 5], [0]))
        assert y.equal(expected)


def test_slots_and_rows_of_nan_reach_nobody_else(table_of):
    weights = random_slots((16, 16), 24)
    x, y = torch.randn(12, 24), torch.randn(12, 32)
    batch = Segments([3, 6, 9, 12], [0, 1, 2])
    expected = y.clone()
    table_of(weights, (16, 16)).add(expected, x, batch)

    for part in weights[1]:
        part.b.fill_(float("nan"))  # an adapter in the batch
    weights[3][0].a.fill_(float("nan"))  # an adapter that nobody uses
    poisoned = x.clone()
    poisoned[1] = poisoned[10] = float("nan")  # rows of the base and of an adapter
    table_of(weights, (16, 16)).add(y, poisoned, batch)
    assert y[6:9].isnan().all()
    assert y[10, :16].isnan().all()  # the third adapter has the first part
    others = [0, 1, 2, 3, 4, 5, 9, 11]
    assert y[others].equal(expected[others])


def test_x_and_y_may_be_parts_of_wider_rows(table_of):
    weights = random_slots(QKV, 61)
    wide_x, wide_y = torch.randn(9, 70), torch.randn(9, 100)
    expected = wide_y.clone()
    reference.sgmv(expected[:, 10:90], wide_x[:, 4:65], [0, 9], [0], weights)
    table_of(weights, QKV).add(wide_y[:, 10:90], wide_x[:, 4:65], Segments([0, 9], [0]))
    torch.testing.assert_close(wide_y, expected, rtol=1e-5, atol=1e-4)


def test_a_segment_is_bit_equal_whatever_the_other_segments_are(table_of):
    table = table_of(random_slots(QKV, 61), QKV)
    x = torch.randn(40, 61)
    alone, among = torch.zeros(9, 80), torch.zeros(40, 80)
    table.add(alone, x[20:29], Segments([0, 9], [0]))
    table.add(among, x, Segments([2, 20, 29, 33, 40], [1, 0, 2, 3]))
    assert among[20:29].equal(alone)


def test_a_row_is_near_alone_and_among_others_of_its_adapter(table_of):
    """Near, not equal: a matrix library sums in another order for few rows than for many."""
    table = table_of(random_slots(QKV, 61), QKV)
    x, together = torch.randn(40, 61), torch.zeros(40, 80)
    table.add(together, x, Segments([0, 40], [0]))
    for i in range(40):
        alone = torch.zeros(1, 80)
        table.add(alone, x[i : i + 1], Segments([0, 1], [0]))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", SITES.values(), ids=SITES.keys())
def test_bfloat16_weights_are_multiplied_as_they_are(table_of, columns):
    weights = [
        [part._replace(a=_rounded(part.a), b=_rounded(part.b), scale=1.7) for part in parts]
        for parts in random_slots(columns, 300)
    ]
    x, y = torch.randn(16, 300), torch.randn(16, sum(columns))
    expected, starts, slots = y.clone(), [0, 1, 3, 7, 16], [3, 1, 2, 0]
    reference.sgmv(expected, x, starts, slots, weights)
    table_of(weights, columns, torch.bfloat16).add(y, x, Segments(starts, slots))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)


def _rounded(matrix):
    return matrix.bfloat16().float()


@pytest.mark.skipif(cpu.library() is None, reason="no C compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("columns", SITES.values(), ids=SITES.keys())
@pytest.mark.parametrize("features", FEATURES)
def test_the_native_kernel_computes_a_row_bit_equal_among_any_others(features, columns, dtype):
    weights = random_slots(columns, features)
    for slot in range(SLOTS - 1):
        table = Site(cpu.PagedLora, SLOTS, columns, dtype)
        table.set(slot, weights[slot])
        x, y = torch.randn(135, features), torch.randn(135, sum(columns))
        together = y.clone()
        table.add(together, x, Segments([0, 135], [slot]))
        for begin, end in [(0, 1), (1, 4), (2, 7), (63, 65), (64, 128), (100, 135), (134, 135)]:
            part = y[begin:end].clone()
            table.add(part, x[begin:end], Segments([0, end - begin], [slot]))
            assert part.equal(together[begin:end]), (slot, begin, end)


@pytest.mark.skipif(cpu.library() is None, reason="no C compiler")
@pytest.mark.parametrize("threads", [1, 3], ids="{}-threads".format)
def test_the_native_kernel_adds_several_adapters_bit_equal_to_each_in_its_turn(threads):
    parts = random_slots(QKV, 61)
    table = Site(cpu.PagedLora, SLOTS, QKV)
    for slot in range(SLOTS):
        table.set(slot, parts[slot])
    slots = [[1, -1, -1], [4, -1, -1], [3, 0, -1], [4, 4, 2], [0, 2, 1]]
    weights = [[2.0, 9, 9], [1, 9, 9], [1, 0.5, 9], [-1, 1, 2], [1, 0.25, 3]]
    starts = [3, 5, 6, 9, 80, 81]
    x, y = torch.randn(84, 61), torch.randn(84, sum(QKV))
    expected = y.clone()
    for n in range(3):
        for i, (own, factors) in enumerate(zip(slots, weights, strict=True)):
            if own[n] >= 0:
                table.add(expected, x, Segments(starts[i : i + 2], [own[n]], [factors[n]]))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    table.add(y, x, Segments(starts, slots, weights))
    torch.set_num_threads(before)
    assert y.equal(expected)


@pytest.mark.skipif(cpu.library() is None, reason="no C compiler")
def test_the_native_kernel_writes_within_its_rows():
    weights = random_slots((61, 61), 37)
    table = Site(cpu.PagedLora, SLOTS, (61, 61))
    for slot in range(SLOTS):
        table.set(slot, weights[slot])
    # Two guard rows and a guard column on each side.
    y, x = torch.full((14, 124), 7.0), torch.full((14, 39), float("nan"))
    x[2:12, 1:38] = torch.randn(10, 37)
    table.add(y[2:12, 1:123], x[2:12, 1:38], Segments([0, 3, 7, 10], [2, 0, 1]))
    assert y[[0, 1, 12, 13]].eq(7).all()
    assert y[:, [0, 123]].eq(7).all()
    assert y.isfinite().all()
