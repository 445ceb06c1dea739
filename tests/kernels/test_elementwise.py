"""rms_norm, rotary, silu_mul and kv_write: one row's result is a function of that row."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb

from weft.kernels.kv_write.reference import kv_write
from weft.kernels.rms_norm.reference import rms_norm
from weft.kernels.rotary.reference import rotary
from weft.kernels.silu_mul import cpu as native_silu_mul
from weft.kernels.silu_mul.reference import silu_mul

NAN = float("nan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def random_norm(hidden, *, epsilon, dtype):
    norm = LlamaRMSNorm(hidden, eps=epsilon).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(hidden) + 1)
    return norm


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 64), (1, 61), (3, 4, 24), (0, 8)], ids=str)
def test_rms_norm_equals_transformers(shape, dtype):
    norm = random_norm(shape[-1], epsilon=1e-5, dtype=dtype)
    x = torch.randn(shape).mul(3).to(dtype)
    with torch.inference_mode():
        torch.testing.assert_close(rms_norm(x, norm.weight, 1e-5), norm(x))


def test_rms_norm_of_zeros_is_zero_and_epsilon_counts():
    weight = torch.ones(8)
    assert rms_norm(torch.zeros(2, 8), weight, 1e-6).equal(torch.zeros(2, 8))
    small = torch.full((1, 8), 1e-3)
    torch.testing.assert_close(rms_norm(small, weight, 1e-6), torch.full((1, 8), 0.5**0.5))


def test_rms_norm_squares_in_float32():
    x = torch.full((1, 64), 60000.0, dtype=torch.float16)  # its square is beyond float16
    assert rms_norm(x, torch.ones(64, dtype=torch.float16), 1e-6).eq(1).all()


@pytest.mark.parametrize("size", [2, 24, 64])
def test_rotary_equals_transformers(size):
    tokens, heads = 7, 3
    x = torch.randn(tokens, heads, size)
    positions = torch.tensor([0, 1, 5, 511, 2, 2, 100_000])
    frequencies = 10000.0 ** -(torch.arange(0, size, 2) / size)
    angles = torch.outer(positions.float(), frequencies)
    both = torch.cat((angles, angles), dim=-1)[None]
    expected, _ = apply_rotary_pos_emb(
        x.transpose(0, 1)[None], x.transpose(0, 1)[None], both.cos(), both.sin()
    )
    actual = rotary(x, angles.cos()[:, None], angles.sin()[:, None])
    torch.testing.assert_close(actual, expected[0].transpose(0, 1))


def test_rotary_turns_each_pair_by_its_angle():
    x = torch.randn(6, 2, 8, dtype=torch.float64)
    angles = torch.randn(6, 1, 4, dtype=torch.float64)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    torch.testing.assert_close(rotary(x, angles.cos(), angles.sin()), expected)


@pytest.mark.parametrize("intermediate", [1, 61, 112])
def test_silu_mul_is_what_transformers_multiplies(intermediate):
    config = LlamaConfig(hidden_size=32, intermediate_size=intermediate)
    mlp = LlamaMLP(config)
    x = torch.randn(5, 32)
    with torch.inference_mode():
        gate_up = torch.cat((mlp.gate_proj(x), mlp.up_proj(x)), dim=-1)
        torch.testing.assert_close(mlp.down_proj(silu_mul(gate_up.clone())), mlp(x))


def test_silu_mul_leaves_its_input_as_it_is():
    gate_up = torch.randn(3, 10)
    before = gate_up.clone()
    silu_mul(gate_up)
    assert gate_up.equal(before)


# Vectors and tails are summed by different instructions, so sizes off the powers of two as well.
@pytest.mark.parametrize("size", [8, 24, 62, 112])
def test_a_row_is_bit_equal_alone_and_among_others(size):
    x = torch.randn(37, size)
    weight, cos, sin = (
        torch.randn(size),
        torch.randn(37, 1, size // 2),
        torch.randn(37, 1, size // 2),
    )
    normed, gated = rms_norm(x, weight, 1e-5), silu_mul(x)
    turned = rotary(x[:, None], cos, sin)
    for i in range(37):
        row = slice(i, i + 1)
        assert rms_norm(x[row], weight, 1e-5).equal(normed[row])
        assert silu_mul(x[row]).equal(gated[row])
        assert rotary(x[row, None], cos[row], sin[row]).equal(turned[row])


def test_nan_stays_in_its_own_row():
    x = torch.randn(5, 16)
    x[2] = NAN
    ones = torch.ones(5, 1, 8)
    for y in (rms_norm(x, torch.ones(16), 1e-5), silu_mul(x), rotary(x[:, None], ones, ones)[:, 0]):
        assert y.isnan().any(-1).tolist() == [False, False, True, False, False]


def test_kv_write_stores_each_token_at_its_place_and_touches_nothing_else():
    pages, page_tokens, heads, size = 5, 3, 2, 7
    k_cache = torch.full((pages, page_tokens, heads, size), NAN)
    v_cache = k_cache.clone()
    key, value = torch.randn(4, heads, size), torch.randn(4, heads, size)
    places = [(4, 2), (0, 0), (2, 1), (2, 2)]
    slots = torch.tensor([page * page_tokens + offset for page, offset in places])
    kv_write(key, value, k_cache, v_cache, slots)
    for i, (page, offset) in enumerate(places):
        assert k_cache[page, offset].equal(key[i])
        assert v_cache[page, offset].equal(value[i])
    for cache in (k_cache, v_cache):
        assert int(cache.isnan().all(-1).all(-1).sum()) == pages * page_tokens - len(places)


def test_kv_write_takes_parts_of_a_wider_projection():
    heads, size = 2, 4
    qkv = torch.randn(3, 3 * heads * size)
    _, key, value = (part.view(3, heads, size) for part in qkv.split(heads * size, dim=-1))
    k_cache, v_cache = torch.zeros(2, 2, heads, size), torch.zeros(2, 2, heads, size)
    kv_write(key, value, k_cache, v_cache, torch.tensor([3, 0, 1]))
    assert k_cache.view(4, heads, size)[[3, 0, 1]].equal(key)
    assert v_cache.view(4, heads, size)[[3, 0, 1]].equal(value)


needs_compiler = pytest.mark.skipif(native_silu_mul.library() is None, reason="no C compiler")


@needs_compiler
@pytest.mark.parametrize("columns", [1, 7, 16, 33, 2300])
def test_native_silu_mul_is_near_torchs(columns):
    gate_up = torch.randn(9, 2 * columns) * 10
    torch.testing.assert_close(
        native_silu_mul.silu_mul(gate_up), silu_mul(gate_up), rtol=1e-5, atol=1e-6
    )


@needs_compiler
def test_native_silu_mul_keeps_its_limits():
    gate = torch.tensor([[0.0, -0.0, 88.0, -88.0, 200.0, -200.0, 1e30, -1e30]])
    out = native_silu_mul.silu_mul(torch.cat((gate, torch.ones_like(gate)), dim=1))
    expected = torch.tensor([[0.0, 0.0, 88.0, 0.0, 200.0, 0.0, 1e30, 0.0]])
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    assert native_silu_mul.silu_mul(torch.tensor([[NAN, 1.0]])).isnan().all()


@needs_compiler
def test_a_row_of_native_silu_mul_is_bit_equal_alone():
    gate_up = torch.randn(70, 2 * 2300)
    together = native_silu_mul.silu_mul(gate_up)
    for row in range(len(gate_up)):
        assert native_silu_mul.silu_mul(gate_up[row : row + 1])[0].equal(together[row])
