"""Which operations a device has, and that all that can be chosen compute the same."""

import pytest
import torch
from torch import nn

from tests.actors.runner.engines import engine_of, prefill
from tests.checkpoints import save_model
from weft.actors.runner import operations
from weft.actors.runner.architecture import UnsupportedModel
from weft.kernels.int8_linear import cpu as native_int8_linear
from weft.kernels.int8_linear.reference import Int8Linear
from weft.kernels.linear import cpu as native_linear
from weft.kernels.linear.onednn import OneDnnLinear
from weft.kernels.rms_norm import reference as rms_norm
from weft.runtime.messages import RowSampling

CPU = torch.device("cpu")
WEIGHT = torch.ones(2, 3)
LOGPROBS = RowSampling(0.0, 1.0, 0, 0.0, 0, logprobs=20)
PROMPTS = [[7, 1, 150, 3], [9, 8] * 15, [4]]

needs_compiler = pytest.mark.skipif(native_linear.library() is None, reason="no C compiler")


@pytest.fixture
def no_compiler(monkeypatch):
    for kernel in operations.NATIVE:
        monkeypatch.setattr(kernel, "library", lambda: None)


@needs_compiler
def test_a_cpu_with_a_compiler_computes_in_c():
    chosen = operations.choose(CPU, int8=False)
    assert type(chosen.linear(WEIGHT, None)) is native_linear.PackedLinear
    assert chosen.rms_norm is not rms_norm.rms_norm
    with_bytes = operations.choose(CPU, int8=True)
    assert type(with_bytes.linear(WEIGHT, None)) is native_int8_linear.Int8Linear


@pytest.mark.usefixtures("no_compiler")
def test_a_cpu_without_a_compiler_computes_in_torch():
    chosen = operations.choose(CPU, int8=False)
    assert type(chosen.linear(WEIGHT, None)) is OneDnnLinear
    assert chosen.rms_norm is rms_norm.rms_norm
    with_bytes = operations.choose(CPU, int8=True)
    assert type(with_bytes.linear(WEIGHT, None)) is Int8Linear


def test_bytes_are_for_cpus_alone():
    with pytest.raises(UnsupportedModel, match=r"quantization is int8.*only a CPU"):
        operations.choose(torch.device("cuda"), int8=True)


class Rounded(nn.Module):
    """A linear layer as it is with bytes."""

    def __init__(self, linear):
        super().__init__()
        self.linear = Int8Linear(linear.weight.detach(), linear.bias)

    def forward(self, x):
        return self.linear(x.flatten(0, -2)).view(*x.shape[:-1], -1)


def rounded(model):
    """The same model with bytes in every linear layer."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, Rounded(module))
    return model


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_compiler), False])
@pytest.mark.parametrize("name", ["llama-mha-bias", "qwen2.5-tied", "qwen3"])
def test_with_bytes_a_model_says_what_it_says_in_transformers_with_the_same_bytes(
    tmp_path, name, native, request
):
    if not native:
        request.getfixturevalue("no_compiler")
    model = rounded(save_model(tmp_path, name))
    done = prefill(engine_of(tmp_path, quantization="int8"), PROMPTS, sampling=LOGPROBS)
    for prompt, item in zip(PROMPTS, done.logprobs, strict=True):
        with torch.inference_mode():
            expected = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        # An input next to the middle of two bytes may go either way; without any bytes, or with
        # those of weights alone, it would be off by ten times as much.
        torch.testing.assert_close(
            torch.tensor(item.top), expected[item.top_tokens], rtol=0, atol=4e-3
        )


def test_what_a_model_says_with_bytes_is_near_what_it_says_with_floats(tmp_path):
    save_model(tmp_path, "qwen2")
    exact, near = (
        prefill(engine_of(tmp_path, quantization=how), PROMPTS, sampling=LOGPROBS).logprobs
        for how in ("none", "int8")
    )
    for one, other in zip(exact, near, strict=True):
        expected = dict(zip(one.top_tokens, one.top, strict=True))
        actual = dict(zip(other.top_tokens, other.top, strict=True))
        both = expected.keys() & actual.keys()
        assert len(both) >= 18
        # As near as rounding everything to bfloat16 would be.
        assert max(abs(expected[token] - actual[token]) for token in both) < 0.25
        assert one.top != other.top


def test_a_gpu_without_triton_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(operations, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedModel, match="needs triton: install it"):
        operations.choose(torch.device("cuda"), int8=False)
