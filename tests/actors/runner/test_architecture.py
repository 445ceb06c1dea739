import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.checkpoints import ARCHITECTURES, LLAMA3_ROPE
from weft.actors.runner import architecture
from weft.actors.runner.architecture import UnsupportedModel


@pytest.fixture
def folder(tmp_path):
    """A folder with the configuration of a model and nothing else."""
    ARCHITECTURES["llama"]().save_pretrained(tmp_path)
    return tmp_path


def rope(**changes):
    return {"rope_parameters": {"rope_theta": 10000.0} | changes}


# What the message must name: the field at fault and what would do.
REFUSED = {
    "family": ({"model_type": "gpt2"}, ["model_type 'gpt2'", "llama, mistral, qwen2, qwen3"]),
    "unknown-family": ({"model_type": "xyz"}, ["model_type 'xyz'", "qwen3"]),
    "no-family": ({"model_type": None}, ["config.json", "model_type None"]),
    "activation": ({"hidden_act": "gelu"}, ["hidden_act 'gelu'", "silu"]),
    "quantised": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        ["quantization_config", "floating type"],
    ),
    "dynamic-rope": (rope(rope_type="dynamic", factor=2.0), ["rope_type 'dynamic'", "yarn"]),
    "longrope": (
        rope(rope_type="longrope", factor=2.0, short_factor=[1.0] * 8, long_factor=[2.0] * 8)
        | {"original_max_position_embeddings": 256},
        ["rope_type 'longrope'", "default, linear, llama3, yarn"],
    ),
    "incomplete-rope": (rope(rope_type="llama3", factor=8.0), ["config.json", "low_freq_factor"]),
    "partial-rope": (
        rope(rope_type="default", partial_rotary_factor=0.5),
        ["partial_rotary_factor", "whole heads"],
    ),
    "type-of-a-field": ({"hidden_size": "many"}, ["config.json", "hidden_size"]),
    "zero-heads": ({"num_attention_heads": 0}, ["config.json"]),
    "heads": (
        {"num_key_value_heads": 3},
        ["num_attention_heads (4)", "num_key_value_heads (3)"],
    ),
    "float64": ({"dtype": "float64"}, ["float64", "bfloat16"]),
    "float8": ({"dtype": "float8_e4m3fn"}, ["float8_e4m3fn", "bfloat16"]),
    "no-such-dtype": ({"dtype": "float12"}, ["config.json", "float12"]),
    "layer-types": (
        {"model_type": "qwen2", "layer_types": ["full_attention", "chunked_attention"]},
        ["layer_types 'chunked_attention'", "full_attention and sliding_attention"],
    ),
    "window-without-size": (
        {"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"]},
        ["layer_types", "sliding_window"],
    ),
}


@pytest.mark.parametrize(("fields", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refusal_names_the_field_and_what_would_do(folder, edit, fields, named):
    edit(folder, **fields)
    with pytest.raises(UnsupportedModel) as caught:
        architecture.read(folder)
    for words in named:
        assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\ufeff{}", '"text"'])
def test_a_file_that_is_no_configuration_is_refused_by_its_path(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        architecture.read(folder)


def test_a_folder_without_configuration_is_refused_by_its_path(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UnsupportedModel, match=r"config\.json.*Hugging Face model folder"):
            architecture.read(folder)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shapes_and_frequencies_equal_those_of_transformers(tmp_path, name):
    ARCHITECTURES[name]().save_pretrained(tmp_path)
    read = architecture.read(tmp_path)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    layer = model.model.layers[0]
    for block in (layer.self_attn, layer.mlp):
        for module, linear in block.named_children():
            if isinstance(linear, torch.nn.Linear):
                assert read.module_shape(module) == tuple(linear.weight.shape)
    assert read.qkv_bias == (layer.self_attn.q_proj.bias is not None)
    assert read.o_bias == (layer.self_attn.o_proj.bias is not None)
    assert read.mlp_bias == (layer.mlp.up_proj.bias is not None)
    assert read.frequencies.equal(model.model.rotary_emb.inv_freq)
    assert read.rope_scale == model.model.rotary_emb.attention_scaling


def test_rope_scaling_under_its_old_name_is_understood(folder, edit):
    scaling = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    old = {"rope_parameters": None, "rope_theta": 500000.0, "rope_scaling": scaling}
    frequencies = architecture.read(edit(folder, **old)).frequencies
    new = {"rope_parameters": LLAMA3_ROPE, "rope_theta": None, "rope_scaling": None}
    assert frequencies.equal(architecture.read(edit(folder, **new)).frequencies)


def test_a_window_in_a_llama_configuration_is_ignored_as_transformers_does(folder, edit):
    edit(folder, sliding_window=16)
    assert architecture.read(folder).windows == (None, None)


@pytest.mark.parametrize(
    ("name", "windows"),
    [("mistral", (16, 16)), ("qwen2", (None, None)), ("qwen2-window", (None, 16))],
)
def test_windows_are_those_of_each_layer(tmp_path, name, windows):
    ARCHITECTURES[name]().save_pretrained(tmp_path)
    assert architecture.read(tmp_path).windows == windows


def test_a_missing_type_is_float32(folder, edit):
    fields = json.loads((folder / "config.json").read_text())
    edit(folder, **dict.fromkeys(fields.keys() & {"dtype", "torch_dtype"}))
    assert architecture.read(folder).dtype == torch.float32
