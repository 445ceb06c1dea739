import pytest
import torch

from weft.kernels.linear.cpu import PackedLinear
from weft.kernels.linear.reference import Linear

# (in, out): sizes of models, sizes off the powers of two, and the smallest.
SHAPES = [(64, 160), (61, 97), (896, 64), (7, 3), (1, 1)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def layer(features, outputs, *, dtype=torch.float32, bias=True):
    torch.manual_seed(0)
    weight = torch.randn(outputs, features).div(features**0.5).to(dtype)
    return weight, torch.randn(outputs).to(dtype) if bias else None


def definition(x, weight, bias):
    y = (x.double()[:, None, :] * weight.double()[None, :, :]).sum(-1)
    return (y if bias is None else y + bias.double()).float()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize(("features", "outputs"), SHAPES)
def test_reference_agrees_with_the_definition(features, outputs, bias):
    weight, bias = layer(features, outputs, bias=bias)
    x = torch.randn(5, features)
    torch.testing.assert_close(Linear(weight, bias)(x), definition(x, weight, bias))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("features", "outputs"), SHAPES)
def test_packed_weights_of_every_type_are_multiplied_as_they_are(features, outputs, dtype, bias):
    weight, bias = layer(features, outputs, dtype=dtype, bias=bias)
    packed = PackedLinear(weight, bias)
    for rows in (1, 2, 31, 64):
        x = torch.randn(rows, features)
        # float32's own tolerance: nothing is rounded to the weights' type.
        torch.testing.assert_close(packed(x), definition(x, weight, bias), rtol=1.3e-6, atol=1e-5)


def test_half_weights_too_small_for_a_normal_number_count():
    weight = torch.full((1, 16), 6e-8, dtype=torch.float16)  # the least that float16 holds
    assert weight[0, 0] > 0
    y = PackedLinear(weight, None)(torch.full((1, 16), 2.0))
    torch.testing.assert_close(y, weight.float().sum(-1, keepdim=True) * 2)


# 2048 and more: where a single row would be summed in another order.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("features", "outputs"), [*SHAPES, (2048, 80), (4864, 33)])
def test_a_row_is_bit_equal_alone_and_among_others(features, outputs, dtype):
    weight, bias = layer(features, outputs, dtype=dtype)
    packed = PackedLinear(weight, bias)
    x = torch.randn(70, features)
    together = packed(x)
    for rows in (1, 2, 3, 4, 7, 8, 16, 31, 33, 69):
        for begin in (0, 1):
            part = slice(begin, begin + rows)
            assert packed(x[part]).equal(together[part]), (rows, begin)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_of_nan_stays_a_row_of_nan_alone(dtype):
    weight, bias = layer(61, 97, dtype=dtype)
    packed = PackedLinear(weight, bias)
    x = torch.randn(9, 61)
    expected = packed(x)
    poisoned = x.clone()
    poisoned[4] = float("nan")
    actual = packed(poisoned)
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert actual[4].isnan().all()
    assert actual[others].equal(expected[others])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_rows_give_no_rows(dtype):
    packed = PackedLinear(*layer(61, 97, dtype=dtype))
    assert packed(torch.empty(0, 61)).shape == (0, 97)
