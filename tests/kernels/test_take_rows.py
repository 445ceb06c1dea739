import pytest
import torch

from weft.kernels.take_rows import cpu, reference

IMPLEMENTATIONS = [
    reference.take_rows,
    pytest.param(
        cpu.take_rows, marks=pytest.mark.skipif(cpu.library() is None, reason="no C compiler")
    ),
]


@pytest.mark.parametrize("take_rows", IMPLEMENTATIONS)
@pytest.mark.parametrize("count", [0, 1, 8, 30])
def test_rows_are_taken_in_any_order_and_as_often_as_they_are_named(take_rows, count):
    x, indices = torch.randn(11, 7), torch.randint(11, (count,))
    assert take_rows(x, indices).equal(x[indices])


@pytest.mark.parametrize("take_rows", IMPLEMENTATIONS)
def test_rows_may_lie_apart(take_rows):
    x = torch.randn(6, 20)[:, 3:9]
    assert take_rows(x, torch.tensor([5, 0])).equal(x[[5, 0]])
