import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.actors.runner.engines import save_adapter
from tests.checkpoints import ARCHITECTURES
from weft.actors.runner import architecture, warmup
from weft.actors.runner.adapter_file import AdapterFile
from weft.actors.runner.affine import Base
from weft.actors.runner.arena import Arena, page_shape
from weft.actors.runner.lora import SITES, HostLora, LoraSlots
from weft.kernels.collectives.reference import Alone

SCRATCH = warmup.Scratch(page=0, tokens=4)


@pytest.fixture
def model(tmp_path):
    ARCHITECTURES["llama"]().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def save(model):
    """A function that writes an adapter's file and returns its digest and its path."""
    return lambda digest, **options: (digest, save_adapter(model, model, digest, **options))


def opened(path, digest):
    with open(path, "rb") as file:
        return AdapterFile(file.fileno(), digest)


def slots_of(model, *adapters, slots=2):
    """Slots into which adapters were filled one after the other, all into slot 1."""
    shapes = architecture.read(model)
    page = page_shape(shapes, 4, torch.float32, torch.float32)
    arena = Arena(page, shapes.layers, 200, torch.device("cpu"))
    base = Base([], Alone())
    made = LoraSlots(shapes, arena.granules(), HostLora, base, slots=slots, pages_max=100)
    pages = list(range(0, 200, 2))
    for digest, path in adapters:
        made.fill(1, opened(path, digest), pages)
        pages.reverse()
    return made


def updates(model, slots, slot=1):
    """What a slot adds to zeros, at every site of every layer."""
    shapes = architecture.read(model)
    generator = torch.Generator().manual_seed(0)
    batch = replace(warmup.blank([5], 0, SCRATCH, adapters=1), lora_slots=np.array([[slot]]))
    found = {}
    for layer in range(shapes.layers):
        for index, (site, modules) in enumerate(SITES.items()):
            width = sum(shapes.module_shape(module)[0] for module in modules)
            x = torch.randn(5, shapes.module_shape(modules[0])[1], generator=generator)
            y = torch.zeros(5, width)
            slots.kernel.plan(batch)(y, x, layer, index)
            found[layer, site] = y
    return found


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for place, y in one.items():
        assert y.equal(two[place]), place


def test_an_empty_slot_adds_nothing(model):
    assert all(y.eq(0).all() for y in updates(model, slots_of(model)).values())


@pytest.mark.parametrize(
    "before",
    [{"rank": 32}, {"rank": 1}, {"modules": ("k_proj", "o_proj", "up_proj")}],
    ids=["wider", "narrower", "other-modules"],
)
@pytest.mark.parametrize(
    "after", [{}, {"modules": ("v_proj", "down_proj")}], ids=["all-modules", "few-modules"]
)
def test_a_slot_that_is_filled_again_equals_one_that_never_held_another(model, save, before, after):
    first, second = save("first", **before), save("second", **after)
    refilled, fresh = slots_of(model, first, second), slots_of(model, second)
    assert_equal(updates(model, refilled), updates(model, fresh))
    assert refilled.digests == fresh.digests == [None, "second"]


def test_modules_that_an_adapter_lacks_are_left_as_they_are(model, save):
    found = updates(model, slots_of(model, save("few", modules=("v_proj", "gate_proj"))))
    shapes = architecture.read(model)
    for layer in range(shapes.layers):
        qkv, gate_up = found[layer, "qkv"], found[layer, "gate_up"]
        assert qkv[:, : shapes.q_size + shapes.kv_size].eq(0).all()
        assert qkv[:, shapes.q_size + shapes.kv_size :].ne(0).all()
        assert gate_up[:, : shapes.intermediate].ne(0).all()
        assert gate_up[:, shapes.intermediate :].eq(0).all()
        assert found[layer, "o"].eq(0).all()
        assert found[layer, "down"].eq(0).all()


def test_filling_one_slot_leaves_the_other_as_it_is(model, save):
    slots = slots_of(model, save("first"))
    before = updates(model, slots)
    digest, path = save("second")
    slots.fill(0, opened(path, digest), range(1, 200, 2))
    assert_equal(updates(model, slots), before)
    assert slots.digests == ["second", "first"]


def test_a_file_of_another_adapter_is_a_bug(model, save):
    _, path = save("first")
    with pytest.raises(AssertionError, match="is not second"):
        slots_of(model, ("second", path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_widened_before_it_is_scaled(model, save, dtype):
    """A scale may have more digits than the weights: B is not rounded a second time."""
    digest, path = save("halves")
    halves = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    scales = {name.removesuffix(".A"): 0.123456789 for name in halves if name.endswith(".A")}
    metadata = {"digest": digest, "scales": json.dumps(scales)}
    save_file(halves, path, metadata=metadata)
    found = updates(model, slots_of(model, (digest, path)))
    save_file({name: tensor.float() for name, tensor in halves.items()}, path, metadata=metadata)
    assert_equal(found, updates(model, slots_of(model, (digest, path))))
    assert all(y.abs().max() > 0 for y in found.values())
