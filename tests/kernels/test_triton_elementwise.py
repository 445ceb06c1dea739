"""rms_norm, rotary_, silu_mul and kv_write in Triton: interpreted, or on a GPU if there is one."""

import pytest
import torch

from weft.kernels.kv_write import reference as kv_write_reference
from weft.kernels.rms_norm import reference as rms_norm_reference
from weft.kernels.silu_mul import reference as silu_mul_reference

pytest.importorskip("triton")
from weft.kernels.kv_write.triton import kv_write
from weft.kernels.rms_norm.triton import add_rms_norm, rms_norm
from weft.kernels.rotary.triton import rotary_
from weft.kernels.silu_mul.triton import silu_mul

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cuda":
    pytestmark = pytest.mark.gpu
NAN = float("nan")
# One rounding of each type, and another since the interpreter rounds bfloat16 towards zero.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def random(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(DEVICE, dtype)


def poisoned(x, *, dim, before, after):
    """The same numbers as part of a wider tensor whose other numbers are NaN."""
    shape = list(x.shape)
    shape[dim] += before + after
    wide = torch.full(shape, NAN, dtype=x.dtype, device=x.device)
    wide.narrow(dim, before, x.shape[dim]).copy_(x)
    return wide.narrow(dim, before, x.shape[dim]), wide


def assert_near(actual, expected):
    tolerance = TOLERANCES[actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@dtypes
@pytest.mark.parametrize("shape", [(5, 64), (1, 61), (3, 896), (0, 8), (2, 1030)], ids=str)
def test_rms_norm_is_the_references(shape, dtype):
    x, _ = poisoned(random(*shape, dtype=dtype) * 3, dim=1, before=2, after=5)
    weight = random(shape[1], dtype=dtype)
    assert_near(rms_norm(x, weight, 1e-5), rms_norm_reference.rms_norm(x, weight, 1e-5))


@dtypes
def test_rms_norm_takes_heads_of_a_projection(dtype):
    heads, _ = poisoned(random(7, 5, 24, dtype=dtype), dim=1, before=1, after=3)
    weight = random(24, dtype=dtype)
    assert_near(rms_norm(heads, weight, 1e-6), rms_norm_reference.rms_norm(heads, weight, 1e-6))


@dtypes
@pytest.mark.parametrize("hidden", [8, 61, 896])
def test_add_rms_norm_adds_in_place_and_norms_the_sum(hidden, dtype):
    x, weight = random(5, hidden, dtype=dtype), random(hidden, dtype=dtype)
    delta, wide = poisoned(random(5, hidden, dtype=dtype), dim=1, before=0, after=3)
    kept = wide.clone()
    expected_sum = x + delta
    actual = add_rms_norm(x, delta, weight, 1e-5)
    assert_near(x, expected_sum)
    assert actual.equal(rms_norm(x, weight, 1e-5))  # of the sum as it was rounded
    assert_near(actual, rms_norm_reference.rms_norm(expected_sum, weight, 1e-5))
    torch.testing.assert_close(wide, kept, rtol=0, atol=0, equal_nan=True)


@dtypes
@pytest.mark.parametrize(("heads", "size"), [(3, 2), (11, 24), (1, 128)])
def test_rotary_turns_heads_in_place_and_nothing_beside_them(heads, size, dtype):
    positions = torch.tensor([0, 1, 5, 511, 2, 2, 100], device=DEVICE)
    angles = random(512, size // 2)
    cos, sin = angles.cos(), angles.sin()
    x, wide = poisoned(random(7, heads, size, dtype=dtype), dim=1, before=0, after=2)
    pairs = torch.complex(x.float()[..., : size // 2], x.float()[..., size // 2 :])
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[positions, None]
    rotary_(x, cos, sin, positions)
    assert_near(x, torch.cat((turned.real, turned.imag), dim=-1).to(dtype))
    assert wide[:, heads:].isnan().all()


@dtypes
@pytest.mark.parametrize("columns", [1, 61, 112, 1500])
def test_silu_mul_is_the_references(columns, dtype):
    gate_up, _ = poisoned(random(5, 2 * columns, dtype=dtype) * 4, dim=1, before=0, after=7)
    assert_near(silu_mul(gate_up), silu_mul_reference.silu_mul(gate_up))


@pytest.mark.filterwarnings("ignore:overflow")
def test_silu_mul_keeps_its_limits():
    gate = torch.tensor([[0.0, -0.0, 88.0, -88.0, 200.0, -200.0, 1e30, -1e30]], device=DEVICE)
    out = silu_mul(torch.cat((gate, torch.ones_like(gate)), dim=1)).cpu()
    expected = torch.tensor([[0.0, 0.0, 88.0, 0.0, 200.0, 0.0, 1e30, 0.0]])
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


@dtypes
@pytest.mark.parametrize(("heads", "size"), [(2, 7), (1, 64), (9, 128)])
def test_kv_write_stores_each_token_at_its_place_and_touches_nothing_else(heads, size, dtype):
    pages, page_tokens = 5, 3
    qkv = random(5, 3, heads, size, dtype=dtype)
    arena = torch.full((pages, 3, page_tokens, heads, size), NAN, dtype=dtype, device=DEVICE)
    expected = arena.clone()
    # The fourth token pads the step.
    slots = torch.tensor([14, 0, 7, -1, 8], device=DEVICE)
    written = [0, 1, 2, 4]
    kv_write(qkv[:, 1], qkv[:, 2], arena[:, 0], arena[:, 1], slots)
    kv_write_reference.kv_write(
        qkv[written, 1], qkv[written, 2], expected[:, 0], expected[:, 1], slots[written]
    )
    torch.testing.assert_close(arena, expected, rtol=0, atol=0, equal_nan=True)


def test_kv_write_rounds_to_the_type_of_the_cache():
    key, value = random(2, 1, 8), random(2, 1, 8)
    caches = [torch.zeros(1, 4, 1, 8, dtype=torch.float16, device=DEVICE) for _ in range(2)]
    kv_write(key, value, *caches, torch.tensor([1, 3], device=DEVICE))
    assert caches[0][0, [1, 3]].equal(key.half())
    assert caches[1][0, [1, 3]].equal(value.half())


@pytest.mark.parametrize("size", [8, 62, 1200])
def test_a_row_is_bit_equal_alone_and_among_others(size):
    x, weight = random(9, size), random(size)
    angles = random(9, size // 2)
    positions = torch.arange(9, device=DEVICE)
    normed, gated = rms_norm(x, weight, 1e-5), silu_mul(x)
    added = x.clone()
    added_norm = add_rms_norm(added, x, weight, 1e-5)
    turned = x[:, None].clone()
    rotary_(turned, angles, angles, positions)
    for i in (0, 4, 8):
        row = slice(i, i + 1)
        assert rms_norm(x[row], weight, 1e-5).equal(normed[row])
        assert silu_mul(x[row]).equal(gated[row])
        own = x[row].clone()
        assert add_rms_norm(own, x[row], weight, 1e-5).equal(added_norm[row])
        assert own.equal(added[row])
        own = x[row, None].clone()
        rotary_(own, angles, angles, positions[row])
        assert own.equal(turned[row])


def test_nan_stays_in_its_own_row():
    x = random(5, 16)
    x[2] = NAN
    turned = x[:, None].clone()
    ones = torch.ones(5, 8, device=DEVICE)
    rotary_(turned, ones, ones, torch.arange(5, device=DEVICE))
    weight = torch.ones(16, device=DEVICE)
    for y in (rms_norm(x, weight, 1e-5), silu_mul(x), turned[:, 0]):
        assert y.isnan().any(-1).tolist() == [False, False, True, False, False]
