import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from weft.kernels.rotary import cpu, reference

NAN = float("nan")
SIZES = [2, 24, 62, 64, 128]
CONTEXT = 512

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


def tables(size):
    frequencies = 10000.0 ** -(torch.arange(0, size, 2) / size)
    angles = torch.outer(torch.arange(CONTEXT).float(), frequencies)
    return angles.cos(), angles.sin()


def rotated(kernel, x, cos, sin, positions):
    x = x.clone()
    kernel.rotary_(x, cos, sin, positions)
    return x


@kernels
@pytest.mark.parametrize("size", SIZES)
def test_heads_are_turned_as_transformers_turns_them(kernel, size):
    x = torch.randn(7, 3, size)
    positions = torch.tensor([0, 1, 5, 511, 2, 2, 100])
    cos, sin = tables(size)
    both_cos, both_sin = (torch.cat((t, t), dim=-1)[None, positions] for t in (cos, sin))
    heads_first = x.transpose(0, 1)[None]
    expected, _ = apply_rotary_pos_emb(heads_first, heads_first, both_cos, both_sin)
    actual = rotated(kernel, x, cos, sin, positions)
    torch.testing.assert_close(actual, expected[0].transpose(0, 1))


def test_the_reference_turns_each_pair_by_its_angle():
    x = torch.randn(6, 2, 8, dtype=torch.float64)
    angles = torch.randn(9, 4, dtype=torch.float64)
    positions = torch.tensor([3, 8, 0, 0, 5, 1])
    turns = torch.polar(torch.ones_like(angles), angles)[positions, None]
    turned = torch.complex(x[..., :4], x[..., 4:]) * turns
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    actual = rotated(reference, x, angles.cos(), angles.sin(), positions)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_reference_rounds_narrow_types_once(dtype):
    x, positions = torch.randn(5, 2, 16).to(dtype), torch.arange(5) * 7
    wide = rotated(reference, x.float(), *tables(16), positions)
    assert rotated(reference, x, *tables(16), positions).equal(wide.to(dtype))


@kernels
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens", [0, 1, 70])
def test_parts_of_a_wider_projection_are_turned_where_they_lie(kernel, tokens, size):
    wide = torch.full((tokens, 6 * size + 3), NAN)
    heads = wide[:, size : 4 * size].unflatten(1, (3, size))
    heads.copy_(torch.randn(tokens, 3, size))
    positions = torch.randint(CONTEXT, (tokens,))
    expected = rotated(reference, heads, *tables(size), positions)
    kernel.rotary_(heads, *tables(size), positions)
    torch.testing.assert_close(heads, expected)
    assert wide[:, :size].isnan().all()
    assert wide[:, 4 * size :].isnan().all()


@kernels
@pytest.mark.parametrize("size", SIZES)
def test_a_token_is_bit_equal_alone_and_among_others(kernel, size, two_threads):
    x, positions = torch.randn(600, 8, size), torch.randint(CONTEXT, (600,))
    together = rotated(kernel, x, *tables(size), positions)
    for i in (0, 1, 36, 599):
        alone = rotated(kernel, x[i : i + 1], *tables(size), positions[i : i + 1])
        assert alone[0].equal(together[i])


@kernels
def test_nan_stays_in_its_own_token(kernel):
    x = torch.randn(5, 2, 16)
    x[2, 1, 3] = NAN
    turned = rotated(kernel, x, *tables(16), torch.arange(5))
    assert turned.isnan().flatten(1).any(1).tolist() == [False, False, True, False, False]
