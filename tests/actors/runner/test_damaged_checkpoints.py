"""Seeded damage to a checkpoint: it is refused in a sentence, or was none, and never more."""

import json
import random

import pytest
from transformers.utils import logging

from tests.checkpoints import ARCHITECTURES, save_model
from weft.actors.adapters.base import BaseShapes
from weft.actors.runner import architecture, weights
from weft.actors.runner.architecture import UnsupportedModel
from weft.runtime.config import ConfigError

VALUES = [
    None, True, 0, -1, -8, 1, 3, 2**31, 2**70, 1.5, float("nan"), "", "x", "\ud800", [], [1], {},
    {"a": 1},
]  # fmt: skip
OPTIONAL = ("head_dim", "sliding_window", "layer_types", "attention_bias", "rope_scaling", "dtype")


@pytest.fixture(autouse=True)
def quiet():
    """What transformers thinks of the values is not the subject."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


# A scaled rotary embedding, windows of some layers, windows of all.
OFTEN = ["llama-yarn", "qwen2-window", "mistral"]
SELDOM = [pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "llama3.1", "qwen3")]


@pytest.fixture(params=[*OFTEN, *SELDOM])
def fields(request, tmp_path):
    """The fields of a configuration that lies in tmp_path."""
    ARCHITECTURES[request.param]().save_pretrained(tmp_path)
    return json.loads((tmp_path / "config.json").read_text())


def outcome(folder):
    """The architecture with shapes that make sense, or None: refused in words."""
    try:
        found = architecture.read(folder)
    except UnsupportedModel as refusal:
        message = str(refusal)
    else:
        check(found)
        return found
    assert 10 < len(message) < 2000
    return None


def check(found):
    for module in weights.MODULES:
        assert min(found.module_shape(module)) > 0
    assert found.frequencies.shape == (found.head_dim // 2,)
    assert found.frequencies.isfinite().all()
    assert found.context_max > 0
    assert len(found.windows) == found.layers


@pytest.mark.parametrize("value", VALUES, ids=ascii)
def test_any_value_in_any_field_is_taken_or_refused(fields, tmp_path, value):
    rope = fields["rope_parameters"]
    changes = [{name: value} for name in (*fields, *OPTIONAL)]
    changes += [{"rope_parameters": rope | {name: value}} for name in (*rope, "factor")]
    taken = 0
    for change in changes:
        (tmp_path / "config.json").write_text(json.dumps(fields | change))
        found = outcome(tmp_path)
        taken += found is not None
        try:
            shapes = BaseShapes.load(str(tmp_path))
        except ConfigError:
            assert found is None or "num_key_value_heads" in change
            continue
        if found is not None:
            for module in weights.MODULES:
                assert shapes.shape(module)[::-1] == found.module_shape(module), change
    assert 0 < taken < len(changes)


SIZES = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size",
    "max_position_embeddings", "num_key_value_heads", "head_dim",
)  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("size", [-1, 2**31])
def test_a_size_that_is_none_is_named(edit, tmp_path, name, size):
    ARCHITECTURES["llama"]().save_pretrained(tmp_path)
    named = name.replace("num_", "").replace("_", "[ _]")  # by weft, or by transformers
    with pytest.raises(UnsupportedModel, match=named):
        architecture.read(edit(tmp_path, **{name: size}))


@pytest.mark.parametrize("head_dim", [1, 33])
def test_heads_of_odd_size_are_refused(edit, tmp_path, head_dim):
    ARCHITECTURES["llama"]().save_pretrained(tmp_path)
    with pytest.raises(
        UnsupportedModel,
        match=r"head_dim 1: .* must be even|an even rotary dimension, .*head_dim`=33",
    ):
        architecture.read(edit(tmp_path, head_dim=head_dim))


@pytest.mark.parametrize("theta", ["x", None, [], 0, -10000.0, float("nan"), 2**70])
def test_rope_parameters_without_frequencies_are_refused_by_their_name(edit, tmp_path, theta):
    ARCHITECTURES["llama"]().save_pretrained(tmp_path)
    edit(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": theta})
    with pytest.raises(UnsupportedModel, match=r"rope_(parameters|theta)"):
        architecture.read(tmp_path)


@pytest.mark.parametrize("load", [architecture.read, lambda folder: BaseShapes.load(str(folder))])
def test_a_configuration_of_any_depth_is_refused(tmp_path, load):
    (tmp_path / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises((UnsupportedModel, ConfigError), match=r"config\.json"):
        load(tmp_path)


def refused(folder, shapes):
    try:
        weights.load(folder, shapes, lambda share: None)
    except UnsupportedModel as refusal:
        message = str(refusal)
    else:
        return False
    assert 10 < len(message) < 2000
    return True


@pytest.mark.parametrize("seed", range(3))
def test_changed_bytes_of_a_header_are_refused_or_change_nothing_that_is_read(tmp_path, seed):
    save_model(tmp_path, "llama")
    shapes = architecture.read(tmp_path)
    path = tmp_path / "model.safetensors"
    good = path.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    rng = random.Random(seed)
    count = 0
    for _ in range(200):
        data = bytearray(good)
        at = rng.randrange(header)
        match rng.randrange(3):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice(b'0123456789[]{},":FBIU')
            case 2:
                del data[at : at + rng.randint(1, 4)]
        path.write_bytes(data)
        count += refused(tmp_path, shapes)
    assert count > 150
    path.write_bytes(good)
    assert not refused(tmp_path, shapes)


@pytest.mark.parametrize("seed", range(3))
def test_changed_bytes_of_an_index_are_refused_or_change_nothing_that_is_read(tmp_path, seed):
    save_model(tmp_path, "llama", max_shard_size="60KB")
    shapes = architecture.read(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    good = path.read_bytes()
    rng = random.Random(seed)
    count = 0
    for _ in range(200):
        data = bytearray(good)
        data[rng.randrange(len(data))] = rng.choice(b'{}[]":,./\\\x00\xff0a')
        path.write_bytes(data)
        count += refused(tmp_path, shapes)
    assert count > 50
    path.write_bytes(good)
    assert not refused(tmp_path, shapes)


@pytest.mark.parametrize("name", ["", ".", "..", "\\u0000", "x" * 1500, "\\ud800"], ids=len)
def test_a_shard_that_is_no_file_is_refused(tmp_path, name):
    save_model(tmp_path, "llama", max_shard_size="60KB")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(f'{{"weight_map": {{"model.norm.weight": "{name}"}}}}')
    with pytest.raises(UnsupportedModel, match=r"download it again|must lie beside the index"):
        weights.load(tmp_path, architecture.read(tmp_path), lambda share: None)
