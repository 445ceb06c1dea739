import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from weft.actors.runner import architecture, weights
from weft.actors.runner.architecture import UnsupportedModel


def load(folder):
    return weights.load(folder, architecture.read(folder), lambda share: None)


def change(folder, **tensors):
    """Replace tensors of a single file by dotted name; None takes one out."""
    path = folder / "model.safetensors"
    everything = load_file(path) | {name.replace("__", "."): t for name, t in tensors.items()}
    save_file({name: t for name, t in everything.items() if t is not None}, path)


def refusal(folder):
    with pytest.raises(UnsupportedModel) as caught:
        load(folder)
    return str(caught.value)


@pytest.mark.parametrize("name", ["llama", "llama-mha-bias", "qwen2.5-tied", "qwen3"])
def test_every_tensor_is_read_as_it_was_saved(saved, name):
    folder = saved(name)
    expected = load_file(folder / "model.safetensors")
    actual = load(folder)
    assert {key.removeprefix("model.") for key in expected} == actual.keys()
    for key, tensor in expected.items():
        assert actual[key.removeprefix("model.")].equal(tensor)


def test_shards_hold_what_one_file_holds(saved, tmp_path):
    whole = load(saved())
    (tmp_path / "model" / "model.safetensors").unlink()
    folder = saved(max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    sharded = load(folder)
    assert sharded.keys() == whole.keys()
    assert all(sharded[name].equal(tensor) for name, tensor in whole.items())


def test_progress_rises_to_one(saved):
    folder = saved(max_shard_size="60KB")
    heard = []
    weights.load(folder, architecture.read(folder), heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0


def test_a_missing_tensor_is_named(saved):
    folder = saved()
    change(folder, model__layers__1__mlp__up_proj__weight=None, model__norm__weight=None)
    message = refusal(folder)
    assert "2 tensors are missing, first layers.1.mlp.up_proj.weight" in message
    assert "of the same model" in message


def test_an_untied_model_without_an_output_layer_is_refused(saved):
    folder = saved("llama")
    change(folder, lm_head__weight=None)
    assert "first lm_head.weight" in refusal(folder)


def test_a_tied_model_may_have_saved_its_output_layer_as_well(saved):
    folder = saved("qwen2.5-tied")
    change(folder, lm_head__weight=torch.zeros(160, 64))
    assert "lm_head.weight" not in load(folder)


def test_frequencies_that_old_versions_saved_are_passed_over(saved):
    folder = saved()
    change(folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(8))
    load(folder)


def test_a_tensor_of_another_shape_is_refused_with_both_shapes(saved):
    folder = saved()
    change(folder, model__layers__0__self_attn__k_proj__weight=torch.zeros(32, 63))
    message = refusal(folder)
    assert "model.layers.0.self_attn.k_proj.weight" in message
    assert "(32, 63)" in message
    assert "(32, 64)" in message


def test_a_configuration_of_another_model_is_refused(saved, edit):
    folder = edit(saved(), num_hidden_layers=3)
    assert "first layers.2." in refusal(folder)
    edit(folder, num_hidden_layers=1)
    assert "unexpected tensor 'model.layers.1." in refusal(folder)
    edit(folder, num_hidden_layers=2, vocab_size=161)
    assert "(160, 64)" in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn], ids=str)
def test_a_type_that_is_not_served_is_refused_with_what_would_do(saved, dtype):
    folder = saved()
    change(folder, model__norm__weight=torch.ones(64).to(dtype))
    message = refusal(folder)
    assert "model.norm.weight" in message
    assert str(dtype) in message
    assert "convert to float32, bfloat16 or float16" in message


def test_a_folder_without_safetensors_says_to_convert(saved):
    folder = saved()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "convert other formats to safetensors" in refusal(folder)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_truncated_file_is_named_and_says_to_download_again(saved, size):
    folder = saved()
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:size])
    message = refusal(folder)
    assert str(path) in message
    assert "download it again" in message


def test_a_missing_shard_is_named_and_says_to_download_again(saved):
    folder = saved(max_shard_size="60KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    message = refusal(folder)
    assert shard.name in message
    assert "download it again" in message


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[]", '{"weight_map": {"a": 1}}', '{"weight_map": []}']
)
def test_an_index_that_is_none_is_named(saved, text):
    folder = saved(max_shard_size="60KB")
    index = folder / "model.safetensors.index.json"
    index.write_text(text)
    assert str(index) in refusal(folder)


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_cannot_point_out_of_its_folder(saved, name):
    folder = saved(max_shard_size="60KB")
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(values))
    assert "shards must lie beside the index" in refusal(folder)
