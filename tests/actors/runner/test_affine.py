"""DoRA's factors are those of PEFT's forward pass, from the base as it is held."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from weft.actors.runner.affine import BaseSite, of_bias, of_magnitude
from weft.kernels.collectives.reference import Alone
from weft.kernels.linear.reference import Linear
from weft.kernels.sgmv.granules import Module

OUT, IN, RANK = 40, 24, 5
# The module's outputs among those of its site.
COLUMNS = slice(7, 7 + OUT)


@pytest.fixture(params=[True, False], ids=["bias", "no-bias"])
def peft_layer(request):
    """A linear layer that PEFT has given DoRA, of random numbers."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(IN, OUT, bias=request.param))
    config = LoraConfig(r=RANK, lora_alpha=9, target_modules=["0"], use_dora=True)
    adapted = get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            elif "lora_" in name:
                parameter.normal_()
    return adapted.base_model.model[0]


def parts_of(layer):
    """The layer's module and magnitude, as an adapter's file has them."""
    a, b = (side["default"].weight.detach() for side in (layer.lora_A, layer.lora_B))
    module = Module(0, a, b, layer.scaling["default"])
    return module, layer.lora_magnitude_vector["default"].weight.detach()


def site_of(weight, bias, inputs=slice(None)):
    """A site of which the module is the middle part, of some of the inputs."""
    wide = torch.cat((torch.randn(7, IN), weight, torch.randn(9, IN)))[:, inputs]
    whole = None if bias is None else torch.cat((torch.randn(7), bias, torch.randn(9)))
    return BaseSite(Linear(wide, whole), wide.square().sum(dim=1), whole, torch.float32)


def base_of(layer):
    bias = layer.base_layer.bias
    return layer.base_layer.weight.detach(), None if bias is None else bias.detach()


def test_base_and_update_through_the_affine_are_what_peft_computes(peft_layer):
    weight, bias = base_of(peft_layer)
    module, magnitude = parts_of(peft_layer)
    affine = of_magnitude(magnitude, module, site_of(weight, bias), COLUMNS, None)
    x = torch.randn(11, IN)
    y = torch.nn.functional.linear(x, weight + module.scale * module.b @ module.a, bias)
    with torch.no_grad():
        expected = peft_layer(x)
    torch.testing.assert_close(affine.factor * y + affine.offset, expected, rtol=1e-5, atol=1e-5)
    assert (affine.factor - 1).abs().max() > 0.1


def test_ranks_that_divide_the_inputs_agree_on_the_factors_of_the_whole(peft_layer):
    weight, _ = base_of(peft_layer)
    module, magnitude = parts_of(peft_layer)
    whole = of_magnitude(magnitude, module, site_of(weight, None), COLUMNS, Alone())
    halves = [slice(0, 10), slice(10, IN)]
    squares = []  # what the ranks give to the sum

    def factors(rank, reduce):
        group = SimpleNamespace(all_reduce=partial(reduce, rank))
        own = module._replace(a=module.a[:, halves[rank]])
        site = site_of(weight, None, halves[rank])
        return of_magnitude(magnitude, own, site, COLUMNS, group).factor

    for rank in range(2):
        factors(rank, lambda _, x: squares.append(x.clone()))
    for rank in range(2):
        found = factors(rank, lambda rank, x: x.add_(squares[1 - rank]))
        torch.testing.assert_close(found, whole.factor, rtol=1e-6, atol=1e-6)


def test_a_bias_of_b_is_scaled_as_b_is():
    affine = of_bias(torch.tensor([1.0, -2.0], dtype=torch.bfloat16), 0.25)
    assert affine.factor.tolist() == [1.0, 1.0]
    assert affine.offset.tolist() == [0.25, -0.5]
    assert affine.offset.dtype == torch.float32


def test_a_row_that_the_update_cancels_stays_finite():
    weight = torch.eye(3)
    module = Module(0, torch.eye(3), -torch.eye(3), 1.0)
    site = BaseSite(Linear(weight, None), torch.ones(3), None, torch.float32)
    affine = of_magnitude(torch.zeros(3), module, site, slice(0, 3), None)
    assert affine.factor.isfinite().all()
