"""What an adapter's digest depends on: what it computes, and nothing else."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import save as save_torch

from tests.actors.adapters.folders import build, folder, tensors


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("base_model.model.model.", "base_model.model."),
        lambda name: name.replace(".weight", ".default.weight"),
    ],
    ids=["without the head", "of old versions"],
)
def test_other_spellings_of_the_names_are_the_same_adapter(rename):
    renamed = {rename(name): values for name, values in tensors().items()}
    assert build(folder(weights=renamed)).digest == build(folder()).digest


def test_whatever_changes_the_result_changes_the_digest():
    float16 = {name: values.astype(np.float16) for name, values in tensors().items()}
    fewer = {name: values for name, values in tensors().items() if "q_proj" not in name}
    variants = [
        folder(),
        folder({"lora_alpha": 9}),
        folder({"use_rslora": True}),
        folder({"alpha_pattern": {"q_proj": 9}}),
        folder({"alora_invocation_tokens": [5, 6]}),
        folder({"alora_invocation_tokens": [6, 5]}),
        folder(weights=float16),
        folder(weights=tensors(seed=1)),
        folder(weights=fewer),
    ]
    assert len({build(files).digest for files in variants}) == len(variants)


def test_what_changes_nothing_keeps_the_digest():
    reordered = save(dict(reversed(tensors().items())), metadata={"format": "pt"})
    same = [
        folder({"base_model_name_or_path": "elsewhere", "lora_dropout": 0.5}),
        folder({"target_modules": "all-linear"}),
        folder({"r": 9, "lora_alpha": 18, "rank_pattern": {".*": 4}, "alpha_pattern": {".*": 8}}),
        folder(weights=reordered),
    ]
    assert {build(files).digest for files in same} == {build(folder()).digest}


def test_every_bit_of_every_weight_counts():
    seen = {build(folder()).digest}
    for name, tensor in tensors().items():
        for at in (0, tensor.size // 2, tensor.size - 1):
            for bit in (0, 12, 22, 31):  # of the fraction, but for the sign
                changed = tensors()
                changed[name].reshape(-1).view(np.uint32)[at] ^= np.uint32(1 << bit)
                seen.add(build(folder(weights=changed)).digest)
    assert len(seen) == 1 + len(tensors()) * 3 * 4


def test_types_and_shapes_of_equal_bytes_count():
    zeros = {name: np.zeros_like(values) for name, values in tensors().items()}
    halves = {name: values.astype(np.float16) for name, values in zeros.items()}
    brains = {
        name: torch.zeros(values.shape, dtype=torch.bfloat16) for name, values in zeros.items()
    }
    wider = {name: np.zeros_like(values, np.float16) for name, values in tensors(8).items()}
    variants = [
        folder(weights=zeros),
        folder(weights=halves),
        folder(weights=save_torch(brains)),
        folder({"r": 8, "lora_alpha": 16}, wider),
    ]
    assert len({build(files).digest for files in variants}) == len(variants)
