import pytest
import torch

from weft.kernels.sgmv import granules
from weft.kernels.sgmv.granules import Module, Tables

MATRICES = [(1, 1), (8, 128), (9, 129), (3, 500), (16, 64), (40, 300), (512, 130)]


@pytest.mark.parametrize(("rank", "columns"), MATRICES)
def test_a_packed_matrix_unpacks_to_itself_and_zeros(rank, columns):
    matrix = torch.randn(rank, columns)
    packed = granules.pack(matrix)
    groups = -(-rank // 8)
    assert packed.shape == (groups * -(-columns // 128), 8, 128)
    unpacked = granules.unpack(packed, groups)
    assert unpacked[:rank, :columns].equal(matrix)
    assert unpacked.count_nonzero() == matrix.count_nonzero()


def test_an_element_lies_where_the_layout_says():
    matrix = torch.arange(20 * 300, dtype=torch.float32).view(20, 300)
    packed = granules.pack(matrix)
    for rank, column in [(0, 0), (7, 127), (8, 0), (19, 299), (11, 200)]:
        granule = packed[column // 128 * 3 + rank // 8]  # of three groups
        assert granule[rank % 8, column % 128] == matrix[rank, column]


def test_the_columns_of_a_tensor_parallel_rank_are_one_run():
    matrix = torch.randn(20, 512)
    whole, right = granules.pack(matrix), granules.pack(matrix[:, 256:])
    assert whole[-len(right) :].equal(right)


def test_a_slot_that_is_cleared_has_no_module():
    tables = Tables(slots=2, layers=1, sites=4, pages_max=3)
    module = Module(0, torch.ones(9, 16), torch.ones(32, 9), 2.0)
    for slot in (0, 1):
        tables.clear(slot, [1, 2])
        laid = tables.lay_out(slot, 0, [[], [module], [], []], torch.float32)
        assert laid.granules == 2 + 2
    assert tables.ranks_max == 16
    tables.clear(0, [2])
    assert tables.groups[0].sum() == 0
    assert tables.groups[1].sum() == 2
