import pytest
import torch

from weft.kernels.linear import cpu
from weft.kernels.linear.cpu import PackedLinear
from weft.kernels.linear.onednn import OneDnnLinear
from weft.kernels.linear.reference import Linear

NAN = float("nan")
# (in, out): sizes of models, sizes off the powers of two and of a panel, and the smallest.
SHAPES = [(64, 160), (61, 97), (896, 64), (7, 3), (1, 1)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

needs_compiler = pytest.mark.skipif(cpu.library() is None, reason="no C compiler")
kinds = pytest.mark.parametrize(
    "kind",
    [pytest.param(PackedLinear, marks=needs_compiler), OneDnnLinear],
    ids=["native", "onednn"],
)
storages = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(params=[1, 3], ids="{}-threads".format)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


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


@kinds
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("features", "outputs"), SHAPES)
def test_weights_of_every_type_are_multiplied_as_they_are(kind, features, outputs, dtype, bias):
    weight, bias = layer(features, outputs, dtype=dtype, bias=bias)
    packed = kind(weight, bias)
    for rows in (1, 2, 31, 70):
        x = torch.randn(rows, features)
        # float32's own tolerance: nothing is rounded to the weights' type.
        torch.testing.assert_close(packed(x), definition(x, weight, bias), rtol=1.3e-6, atol=1e-5)


@kinds
def test_half_weights_too_small_for_a_normal_number_count(kind):
    weight = torch.full((1, 16), 6e-8, dtype=torch.float16)  # the least that float16 holds
    assert weight[0, 0] > 0
    y = kind(weight, None)(torch.full((1, 16), 2.0))
    torch.testing.assert_close(y, weight.float().sum(-1, keepdim=True) * 2)


# 2048 and more: where oneDNN would sum a single row in another order. The last: more rows than
# pass through the cache together.
@kinds
@storages
@pytest.mark.parametrize(
    ("features", "outputs", "rows"),
    [*((*shape, 70) for shape in SHAPES), (2048, 80, 70), (4864, 33, 70), (256, 300, 260)],
)
def test_a_row_is_bit_equal_alone_and_among_others(kind, features, outputs, rows, dtype, threads):
    packed = kind(*layer(features, outputs, dtype=dtype))
    x = torch.randn(rows, features)
    together = packed(x)
    for count in (*range(1, 17), 31, 33, rows - 1):
        for begin in (0, 1):
            part = slice(begin, begin + count)
            assert packed(x[part]).equal(together[part]), (count, begin)


@needs_compiler
@storages
@pytest.mark.parametrize(("features", "outputs"), [(896, 1152), (300, 4100)])
@pytest.mark.parametrize("rows", [1, 12, 70])
def test_the_number_of_threads_changes_no_bit(rows, features, outputs, dtype):
    packed = PackedLinear(*layer(features, outputs, dtype=dtype))
    x, before = torch.randn(rows, features), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(packed(x))
    finally:
        torch.set_num_threads(before)
    assert all(result.equal(results[0]) for result in results)


@needs_compiler
@storages
@pytest.mark.parametrize("rows", [1, 2, 3, 12, 13, 70])
def test_rows_may_lie_apart_and_what_is_between_is_not_read(rows, dtype):
    packed = PackedLinear(*layer(61, 97, dtype=dtype))
    wide = torch.full((rows, 90), NAN)
    x = wide[:, 11:72]
    x.copy_(torch.randn(rows, 61))
    assert packed(x).equal(packed(x.clone()))


@kinds
@storages
def test_a_row_of_nan_stays_a_row_of_nan_alone(kind, dtype):
    packed = kind(*layer(61, 97, dtype=dtype))
    x = torch.randn(9, 61)
    expected = packed(x)
    poisoned = x.clone()
    poisoned[4] = NAN
    actual = packed(poisoned)
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert actual[4].isnan().all()
    assert actual[others].equal(expected[others])


@kinds
@storages
@pytest.mark.parametrize(("features", "outputs"), [(61, 97), (256, 4096)], ids=["small", "large"])
def test_no_rows_give_no_rows(kind, features, outputs, dtype):
    packed = kind(*layer(features, outputs, dtype=dtype))
    assert packed(torch.empty(0, features)).shape == (0, outputs)
