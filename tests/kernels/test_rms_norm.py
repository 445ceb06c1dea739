import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from weft.kernels.native.program import Program
from weft.kernels.rms_norm import cpu, reference

NAN = float("nan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Vectors and what is left of them are summed apart, so sizes off the powers of two as well.
SIZES = [1, 7, 16, 61, 64, 67, 112, 128, 896, 2300]

needs_compiler = pytest.mark.skipif(cpu.library() is None, reason="no C compiler")
kernels = pytest.mark.parametrize(
    "kernel", [reference, pytest.param(cpu, marks=needs_compiler)], ids=["reference", "native"]
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def random_norm(hidden, *, epsilon, dtype=torch.float32):
    norm = LlamaRMSNorm(hidden, eps=epsilon).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(hidden) + 1)
    norm.weight.requires_grad_(False)
    return norm


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 64), (1, 61), (3, 4, 24), (0, 8)], ids=str)
def test_the_reference_equals_transformers(shape, dtype):
    norm = random_norm(shape[-1], epsilon=1e-5, dtype=dtype)
    x = torch.randn(shape).mul(3).to(dtype)
    torch.testing.assert_close(reference.rms_norm(x, norm.weight, 1e-5), norm(x))


@kernels
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 2, 70])
def test_a_norm_is_transformers_norm(kernel, rows, size):
    norm = random_norm(size, epsilon=1e-5)
    x = torch.randn(rows, size).mul(3)
    before = x.clone()
    torch.testing.assert_close(kernel.rms_norm(x, norm.weight, 1e-5), norm(x))
    assert x.equal(before)


@kernels
@pytest.mark.parametrize("size", SIZES)
def test_heads_within_a_wider_projection_are_normalised_each_by_itself(kernel, size):
    norm = random_norm(size, epsilon=1e-5)
    wide = torch.full((5, 6 * size + 3), NAN)
    heads = wide[:, size : 5 * size].unflatten(1, (4, size))
    heads.copy_(torch.randn(5, 4, size))
    torch.testing.assert_close(kernel.rms_norm(heads, norm.weight, 1e-5), norm(heads))


@kernels
def test_the_norm_of_zeros_is_zero_and_epsilon_counts(kernel):
    weight = torch.ones(8)
    assert kernel.rms_norm(torch.zeros(2, 8), weight, 1e-6).equal(torch.zeros(2, 8))
    small = torch.full((1, 8), 1e-3)
    torch.testing.assert_close(kernel.rms_norm(small, weight, 1e-6), torch.full((1, 8), 0.5**0.5))


def test_the_reference_squares_in_float32():
    x = torch.full((1, 64), 60000.0, dtype=torch.float16)  # its square is beyond float16
    assert reference.rms_norm(x, torch.ones(64, dtype=torch.float16), 1e-6).eq(1).all()


@kernels
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_adding_first_is_adding_and_then_normalising(kernel, rows, size):
    x, delta, weight = torch.randn(rows, size), torch.randn(rows, size), torch.randn(size)
    total, before = x + delta, delta.clone()
    normed = kernel.add_rms_norm(x, delta, weight, 1e-5)
    assert x.equal(total)
    assert delta.equal(before)
    assert normed.equal(kernel.rms_norm(total, weight, 1e-5))


@kernels
@pytest.mark.parametrize("size", SIZES)
def test_a_row_is_bit_equal_alone_and_among_others(kernel, size, two_threads):
    x, weight = torch.randn(137, size), torch.randn(size)
    together = kernel.rms_norm(x, weight, 1e-5)
    for i in (0, 1, 36, 136):
        assert kernel.rms_norm(x[i : i + 1], weight, 1e-5).equal(together[i : i + 1])


@kernels
def test_no_rows_give_no_rows(kernel):
    x, weight = torch.empty(0, 16), torch.randn(16)
    assert kernel.rms_norm(x, weight, 1e-5).shape == (0, 16)
    assert kernel.add_rms_norm(x, x.clone(), weight, 1e-5).shape == (0, 16)


@kernels
def test_nan_stays_in_its_own_row(kernel):
    x = torch.randn(5, 16)
    x[2, 3] = NAN
    weight = torch.ones(16)
    expected = [False, False, True, False, False]
    assert kernel.rms_norm(x, weight, 1e-5).isnan().any(-1).tolist() == expected
    added = kernel.add_rms_norm(torch.zeros(5, 16), x, weight, 1e-5)
    assert added.isnan().any(-1).tolist() == expected


@needs_compiler
@pytest.mark.parametrize("heads", [None, 3])
def test_chosen_rows_of_a_program_get_the_bits_of_their_own_weights(heads):
    rows, size = 40, 67
    wide = torch.randn(rows, 5, size)
    x = wide[:, 2] if heads is None else wide[:, 1 : 1 + heads]
    weights, epsilon = torch.randn(3, size), 1e-5
    program, chosen = Program("rows"), cpu.Chosen()
    with program.record("rows"):
        out = cpu.rms_norm(x, weights[0], epsilon)
        cpu.rms_norm_chosen(out, x, chosen, epsilon)
    expected = cpu.rms_norm(x, weights[0], epsilon)
    for runs in ([(slice(3, 30), 1), (slice(39, 40), 2)], [], [(slice(0, 1), 2)]):
        chosen.lay_out([(some, weights[which]) for some, which in runs])
        program.run(rows=rows)
        mixed = expected.clone()
        for some, which in runs:
            mixed[some] = cpu.rms_norm(x, weights[which], epsilon)[some]
        assert out.equal(mixed)
