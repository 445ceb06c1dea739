"""Linear layers whose weights and inputs are rounded to bytes."""

import importlib.util

import pytest
import torch

from weft.kernels.int8_linear import cpu
from weft.kernels.int8_linear.reference import (
    GROUP,
    LEAST,
    Int8Linear,
    round_inputs,
    round_weight,
)
from weft.kernels.native import build
from weft.kernels.native.program import Program

NAN, INF = float("nan"), float("inf")
# (in, out): sizes of models, sizes off a group, a panel and a step of the instructions.
SHAPES = [(64, 160), (61, 97), (896, 64), (130, 33), (7, 3), (1, 1)]
ROWS = (1, 2, 5, 12, 13, 31, 70)

needs_compiler = pytest.mark.skipif(cpu.library() is None, reason="no C compiler")
# What makes the compiler forget what this processor may have; an older one has less.
INSTRUCTIONS = {
    "avx512-without-vnni": ("-mno-avx512vnni",),
    "avx-vnni": ("-mno-avx512f", "-mavxvnni"),
    "avx2": ("-mno-avx512f", "-mno-avxvnni"),
    "sse": ("-mno-avx512f", "-mno-avxvnni", "-mno-avx2", "-mno-avx", "-mno-fma", "-mno-f16c"),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=[1, 3], ids="{}-threads".format)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(
    params=[pytest.param(cpu.Int8Linear, marks=needs_compiler), Int8Linear], ids=["native", "torch"]
)
def kind(request):
    return request.param


def layer(features, outputs, *, dtype=torch.float32, bias=True):
    weight = torch.randn(outputs, features).div(features**0.5).to(dtype)
    return weight, torch.randn(outputs).to(dtype) if bias else None


def inputs(rows, features):
    """Rows of very different sizes, of which each has channels far larger than the others."""
    x = torch.randn(rows, features) * torch.logspace(-6, 6, rows)[:, None]
    x[:, ::50] *= 40
    return x


def definition(x, weight, bias):
    """In float64, from what the two functions round to."""
    whole, steps = round_inputs(x)
    rounded = (whole.double() * steps.double()[:, :, None]).flatten(1)[:, : x.shape[1]]
    values, scales = round_weight(weight)
    y = rounded @ (values.double() * scales.double()[:, None]).t()
    return (y if bias is None else y + bias.double()).float()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize(("features", "outputs"), SHAPES)
def test_what_is_multiplied_is_what_rounding_gives(kind, features, outputs, bias):
    weight, bias = layer(features, outputs, bias=bias)
    for rows in ROWS:
        x = torch.randn(rows, features)
        y = kind(weight, bias)(x)
        torch.testing.assert_close(y, definition(x, weight, bias), rtol=1.3e-6, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("features", "outputs"), [*SHAPES, (4864, 33), (256, 300)])
def test_c_and_torch_compute_the_same_bits(features, outputs, dtype, threads):
    of_layer = layer(features, outputs, dtype=dtype)
    in_c, in_torch = cpu.Int8Linear(*of_layer), Int8Linear(*of_layer)
    for rows in (*ROWS, 260):
        x = inputs(rows, features)
        assert in_c(x).equal(in_torch(x)), rows


@pytest.fixture(params=INSTRUCTIONS)
def older(request, monkeypatch, tmp_path):
    """The kernel as it is compiled for a processor with fewer instructions."""
    flags, has = INSTRUCTIONS[request.param], build._processor().split()
    if cpu.library() is None or "avx512_vnni" not in has:
        pytest.skip("no C compiler, or a processor that has less itself")
    if "-mavxvnni" in flags and "avx_vnni" not in has:
        pytest.skip("a processor without AVX-VNNI")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, *flags))
    # The module once more, for it loads its library but once.
    spec = importlib.util.spec_from_file_location("older", cpu.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.library() is not None
    return module


@pytest.mark.parametrize(("features", "outputs"), [(61, 97), (896, 64), (1, 1)])
def test_the_processors_instructions_change_no_bit(older, features, outputs):
    of_layer = layer(features, outputs)
    ours, theirs = cpu.Int8Linear(*of_layer), older.Int8Linear(*of_layer)
    for rows in ROWS:
        x = inputs(rows, features)
        assert theirs(x).equal(ours(x)), rows


@pytest.mark.parametrize("features", [3, 64, 700])
def test_the_largest_weights_and_inputs_do_not_overflow(kind, features):
    weight, x = torch.full((40, features), -3.0), torch.full((13, features), 5.0)
    weight[::2], x[::2] = 3.0, -5.0
    expected = (x.double() @ weight.t().double()).float()
    torch.testing.assert_close(kind(weight, None)(x), expected)


def test_a_quantized_weight_is_off_by_half_a_step_at_most():
    weight, _ = layer(300, 50)
    weight *= torch.logspace(-20, 20, 50)[:, None]
    values, scales = round_weight(weight)
    off = (values.float() * scales[:, None] - weight).abs()
    assert (off <= scales[:, None] * 0.5001).all()
    assert values.abs().amax(1).eq(127).all()


def test_a_rounded_input_is_off_by_half_a_step_of_its_group_at_most():
    x = inputs(20, 3 * GROUP - 5)
    values, scales = round_inputs(x)
    padded = torch.nn.functional.pad(x, (0, 5)).view(20, 3, GROUP)
    off = (values * scales[:, :, None] - padded).abs()
    assert (off <= scales[:, :, None] * 0.5001).all()
    assert values.abs().amax(2).eq(127).all()


def test_channels_much_larger_than_the_others_cost_only_their_groups_precision():
    x = torch.randn(4, 2 * GROUP)
    exact = round_inputs(x)
    x[:, 7] = 1000.0
    values, scales = round_inputs(x)
    assert scales[:, 0].gt(7).all()
    assert scales[:, 1].equal(exact[1][:, 1])
    assert values[:, 1].equal(exact[0][:, 1])


@pytest.mark.parametrize("size", [0.0, LEAST / 4, 1e-45])
def test_rows_of_next_to_nothing_give_the_bias(kind, size):
    weight, bias = layer(100, 40)
    x = torch.randn(3, 100)
    expected = kind(weight, bias)(x)
    x[1] = size
    y = kind(weight, bias)(x)
    assert y[1].equal(bias)
    assert y[[0, 2]].equal(expected[[0, 2]])


def test_weights_of_zeros_give_zeros(kind):
    assert kind(torch.zeros(5, 70), None)(torch.randn(3, 70)).equal(torch.zeros(3, 5))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("place", [0, 69, 96])
def test_what_is_not_finite_makes_its_row_nan_and_no_other(kind, value, place):
    weight, bias = layer(97, 61)
    x = torch.randn(9, 97)
    expected = kind(weight, bias)(x)
    x[4, place] = value
    y = kind(weight, bias)(x)
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert y[4].isnan().all()
    assert y[others].equal(expected[others])


# The last: more rows than pass through the cache together.
@pytest.mark.parametrize(
    ("features", "outputs", "rows"),
    [*((*shape, 70) for shape in SHAPES), (2048, 80, 70), (256, 300, 260)],
)
def test_a_row_is_bit_equal_alone_and_among_others(kind, features, outputs, rows, threads):
    packed = kind(*layer(features, outputs))
    x = inputs(rows, features)
    together = packed(x)
    for count in (*range(1, 17), 31, 33, rows - 1):
        for begin in (0, 1):
            part = slice(begin, begin + count)
            assert packed(x[part]).equal(together[part]), (count, begin)


@needs_compiler
@pytest.mark.parametrize("rows", [1, 2, 13, 70])
def test_rows_may_lie_apart_and_what_is_between_is_not_read(rows):
    packed = cpu.Int8Linear(*layer(61, 97))
    wide = torch.full((rows, 90), NAN)
    x = wide[:, 11:72]
    x.copy_(torch.randn(rows, 61))
    assert packed(x).equal(packed(x.clone()))


@needs_compiler
def test_a_program_computes_the_same_bits_for_any_number_of_rows(threads):
    first, second = cpu.Int8Linear(*layer(300, 200)), cpu.Int8Linear(*layer(200, 70))
    program, x = Program("rows"), torch.zeros(70, 300)
    with program.record("rows"):
        y = second(first(x))
    for rows in ROWS:
        x[:rows] = inputs(rows, 300)
        program.run(rows=rows)
        assert y[:rows].equal(second(first(x[:rows]))), rows


@pytest.mark.parametrize(("features", "outputs"), [(61, 97), (256, 4096)], ids=["small", "large"])
def test_no_rows_give_no_rows(kind, features, outputs):
    assert kind(*layer(features, outputs))(torch.empty(0, features)).shape == (0, outputs)
