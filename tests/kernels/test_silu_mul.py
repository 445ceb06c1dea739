import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from weft.kernels.silu_mul import cpu
from weft.kernels.silu_mul.reference import silu_mul

NAN = float("nan")

needs_compiler = pytest.mark.skipif(cpu.library() is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


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


@pytest.mark.parametrize("size", [8, 24, 62, 112])
def test_a_row_is_bit_equal_alone_and_among_others(size):
    x = torch.randn(37, size)
    together = silu_mul(x)
    for i in range(37):
        assert silu_mul(x[i : i + 1]).equal(together[i : i + 1])


def test_nan_stays_in_its_own_row():
    x = torch.randn(5, 16)
    x[2] = NAN
    assert silu_mul(x).isnan().any(-1).tolist() == [False, False, True, False, False]


@needs_compiler
@pytest.mark.parametrize("columns", [1, 7, 16, 33, 2300])
def test_native_silu_mul_is_near_torchs(columns):
    gate_up = torch.randn(9, 2 * columns) * 10
    torch.testing.assert_close(cpu.silu_mul(gate_up), silu_mul(gate_up), rtol=1e-5, atol=1e-6)


@needs_compiler
def test_native_silu_mul_keeps_its_limits():
    gate = torch.tensor([[0.0, -0.0, 88.0, -88.0, 200.0, -200.0, 1e30, -1e30]])
    out = cpu.silu_mul(torch.cat((gate, torch.ones_like(gate)), dim=1))
    expected = torch.tensor([[0.0, 0.0, 88.0, 0.0, 200.0, 0.0, 1e30, 0.0]])
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    assert cpu.silu_mul(torch.tensor([[NAN, 1.0]])).isnan().all()


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_of_native_silu_mul_is_bit_equal_alone(threads):
    gate_up, before = torch.randn(70, 2 * 2300), torch.get_num_threads()
    torch.set_num_threads(threads)
    together = cpu.silu_mul(gate_up)
    torch.set_num_threads(before)
    for row in range(len(gate_up)):
        assert cpu.silu_mul(gate_up[row : row + 1])[0].equal(together[row])
