import pytest
import torch

from weft.kernels.paged_matrix import cpu, reference
from weft.kernels.paged_matrix.reference import Matrix
from weft.kernels.sgmv import granules

SIZES = [(1, 1), (8, 128), (9, 129), (3, 500), (67, 40), (40, 300), (130, 257)]
needs_compiler = pytest.mark.skipif(cpu.library() is None, reason="no compiler")


def scattered(rows, columns, dtype=torch.float32):
    """A random matrix, and the same in granules of an arena, among and beside NaN."""
    matrix = torch.randn(rows, columns).to(dtype)
    packed = granules.pack(matrix)
    padding = granules.pack(torch.ones_like(matrix)) == 0
    packed[padding] = float("nan")
    arena = torch.full((2 * len(packed) + 3, 8, 128), float("nan"), dtype=dtype)
    places = torch.randperm(len(arena))[: len(packed)]
    arena[places] = packed
    return matrix, Matrix(arena, places.view(-1, -(-rows // 8)).contiguous(), rows, columns)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("made", [reference, pytest.param(cpu, marks=needs_compiler)])
def test_products_are_those_of_the_whole_matrix(rows, columns, dtype, made):
    torch.manual_seed(rows)
    matrix, paged = scattered(rows, columns, dtype)
    for count in (1, 2, 5):
        v, x = torch.randn(count, rows), torch.randn(count, columns)
        torch.testing.assert_close(made.times(paged, v), v @ matrix.float(), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(
            made.times_transposed(paged, x), x @ matrix.float().t(), atol=1e-4, rtol=1e-5
        )


def test_a_matrix_of_many_rows_is_put_together_in_parts():
    matrix, paged = scattered(4111, 5)
    v, x = torch.randn(2, 4111), torch.randn(2, 5)
    torch.testing.assert_close(reference.times(paged, v), v @ matrix, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(reference.times_transposed(paged, x), x @ matrix.t())


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_rows_and_columns_are_found_in_any_order(rows, columns):
    matrix, paged = scattered(rows, columns)
    some = torch.randint(rows, (9,))
    assert reference.rows_at(paged, some).equal(matrix[some])
    some = torch.randint(columns, (9,))
    assert reference.columns_at(paged, some).equal(matrix[:, some].t())
    assert reference.rows_at(paged, some[:0]).shape == (0, columns)


@needs_compiler
def test_a_row_has_the_same_bits_alone_and_among_others():
    _, paged = scattered(75, 333)
    v, x = torch.randn(7, 75), torch.randn(7, 333)
    for t in range(7):
        assert cpu.times(paged, v)[t].equal(cpu.times(paged, v[t : t + 1])[0])
        alone = cpu.times_transposed(paged, x[t : t + 1])[0]
        assert cpu.times_transposed(paged, x)[t].equal(alone)
