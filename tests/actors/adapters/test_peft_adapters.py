"""Adapters as PEFT saves them: what is kept of them is what PEFT would add to the base."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from safetensors.torch import load, load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from tests.checkpoints import MODULES
from weft.actors.adapters.errors import BadAdapter

EACH_OF_TWO = {
    "r": 8, "target_modules": ["q_proj", "k_proj"],
    "rank_pattern": {"k_proj": 2, r"layers\.0\.self_attn\.q_proj": 5},
    "alpha_pattern": {"layers.1.self_attn.q_proj": 3},
}  # fmt: skip

OPTIONS = {
    "every-module": {"r": 8, "target_modules": list(MODULES)},
    "suffixes": {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "mlp.up_proj"]},
    "one-by-name": {"r": 3, "target_modules": ["layers.1.self_attn.q_proj"]},
    "rslora": {"r": 8, "use_rslora": True, "target_modules": ["v_proj"]},
    "all-linear": {"r": 8, "target_modules": "all-linear"},
    "excluded": {"r": 4, "target_modules": "all-linear", "exclude_modules": ["up_proj", "q_proj"]},
    "expression": {"r": 8, "target_modules": r".*\.1\.self_attn\.(q|o)_proj"},
    "patterns": EACH_OF_TWO,
    "patterns-rslora": EACH_OF_TWO | {"use_rslora": True, "lora_alpha": 11},
    # In the order in which PEFT saves them: it sorts keys, whatever they were before.
    "overlapping-patterns": {
        "r": 4, "target_modules": "all-linear",
        "rank_pattern": {r".*\.1\..*": 2, r"[a-z]+\.down_proj": 3, "down_proj": 6, "q_proj": 5},
        "alpha_pattern": {"^model.layers.0.self_attn.o_proj": 1, "down_proj": 9, "mlp.*": 5},
    },
    "one-pattern-rslora": {
        "r": 4, "use_rslora": True, "target_modules": ["up_proj"],
        "rank_pattern": {"up_proj": 9}, "alpha_pattern": {r"1\.mlp\.up_proj": 5},
    },
    "excluded-layer": {"r": 4, "target_modules": list(MODULES), "exclude_modules": r".*\.0\..*"},
    "layers": {"r": 4, "target_modules": list(MODULES), "layers_to_transform": [1]},
    "one-layer": {
        "r": 4, "target_modules": ["o_proj"], "layers_to_transform": 0, "layers_pattern": "layers",
    },
    "dropout": {"r": 4, "target_modules": ["gate_proj"], "lora_dropout": 0.1},
    "gaussian": {"r": 4, "target_modules": ["gate_proj"], "init_lora_weights": "gaussian"},
    "orthogonal": {"r": 4, "target_modules": ["gate_proj"], "init_lora_weights": "orthogonal"},
}  # fmt: skip


def deltas(kept):
    """Scale B A of every module, from the file that the runner reads."""
    file = load(b"".join(bytes(part) for part in kept.file()))
    return {
        name: scale * (file[f"{name}.B"].float() @ file[f"{name}.A"].float())
        for name, scale in kept.scales.items()
    }


def adapted_layers(model):
    """The layers that PEFT changed, by the names that the store gives them."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            *_, layer, _, short = name.split(".")
            found[f"layers.{layer}.{short}"] = module
    return found


def assert_adds_what_peft_adds(kept, model):
    found, expected = deltas(kept), adapted_layers(model)
    assert found.keys() == expected.keys()
    assert found
    for name, layer in expected.items():
        delta = layer.float().get_delta_weight("default")
        torch.testing.assert_close(found[name], delta, rtol=1e-5, atol=1e-5)
        assert delta.abs().max() > 0.1
    assert kept.rank == max(layer.r["default"] for layer in expected.values())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_scale_b_a_is_what_peft_adds_to_the_weight(made, read, options):
    folder, model = made(**options)
    assert_adds_what_peft_adds(read(folder), model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_weights_keep_the_type_in_which_they_were_saved(made, read, dtype):
    folder, model = made(r=4, target_modules=["o_proj", "down_proj"], dtype=dtype)
    kept = read(folder)
    file = load(b"".join(bytes(part) for part in kept.file()))
    assert {tensor.dtype for tensor in file.values()} == {dtype}
    assert_adds_what_peft_adds(kept, model)


@pytest.mark.parametrize("name", ["suffixes", "all-linear", "expression", "patterns"])
def test_an_adapter_of_the_bare_model_is_read_as_one_of_the_whole(made, read, name):
    folder, model = made(**OPTIONS[name], load=AutoModel, task_type=None)
    names = load_file(folder / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.layers.") for name in names)
    assert_adds_what_peft_adds(read(folder), model)


def test_names_do_not_count_for_the_digest(made, read):
    """Spelt as by the bare model, or as by old versions of PEFT."""
    folder, _ = made(r=4, target_modules=["q_proj", "down_proj"])
    digest = read(folder).digest
    path = folder / "adapter_model.safetensors"
    saved = load_file(path)
    for old, new in ((".model.model.", ".model."), (".weight", ".default.weight")):
        save_file({name.replace(old, new): tensor for name, tensor in saved.items()}, path)
        assert load_file(path).keys() != saved.keys()
        assert read(folder).digest == digest


def test_the_same_weights_twice_have_no_meaning(made, read):
    folder, _ = made(r=4, target_modules=["q_proj"])
    path = folder / "adapter_model.safetensors"
    saved = load_file(path)
    bare = {name.replace(".model.model.", ".model."): t.clone() for name, t in saved.items()}
    save_file(saved | bare, path)
    with pytest.raises(BadAdapter, match="the same module twice; keep one"):
        read(folder)


def test_the_digest_is_of_the_content_alone(made, read):
    folder, _ = made(r=4, lora_alpha=8, target_modules=["q_proj"])
    digest = read(folder).digest
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())

    def digest_with(**changes):
        path.write_text(json.dumps(config | changes, indent=7))
        return read(folder).digest

    assert digest_with(base_model_name_or_path="elsewhere", lora_dropout=0.5) == digest
    assert digest_with(target_modules="all-linear") == digest
    assert digest_with(alpha_pattern={"q_proj": 8}) == digest
    assert digest_with(lora_alpha=4, use_rslora=True) == digest  # 4 / sqrt(4) is 8 / 4
    others = [
        digest_with(lora_alpha=9),
        digest_with(lora_alpha=8.000001),
        digest_with(lora_alpha=-8),
        digest_with(use_rslora=True),
        digest_with(alpha_pattern={"layers.0.self_attn.q_proj": 4}),
        digest_with(alpha_pattern={"layers.1.self_attn.q_proj": 4}),
    ]
    assert len({digest, *others}) == 7


@pytest.mark.filterwarnings("ignore:(PiSSA|OLoRA) changes the base weights:UserWarning")
@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("use_rslora", [False, True], ids=["plain", "rslora"])
def test_an_adapter_of_a_changed_base_serves_once_peft_has_converted_it(
    base_folder, tmp_path, read, init, use_rslora
):
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    before = {name: tensor.clone() for name, tensor in base.named_parameters()}
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=init,
        use_rslora=use_rslora,
    )  # fmt: skip
    model = get_peft_model(base, config)
    config = model.peft_config["default"]
    config.init_lora_weights = True  # as PEFT's documentation has it, to save what is not trained
    model.save_pretrained(tmp_path / "initial", save_embedding_layers=False)
    config.init_lora_weights = init
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(
        tmp_path / "converted",
        path_initial_model_for_weight_conversion=str(tmp_path / "initial"),
        save_embedding_layers=False,
    )
    found = deltas(read(tmp_path / "converted"))
    for name, layer in adapted_layers(model).items():
        merged = layer.base_layer.weight + layer.get_delta_weight("default")
        change = merged - before[f"model.{name.replace('q_proj', 'self_attn.q_proj')}.weight"]
        torch.testing.assert_close(found[name], change, rtol=1e-4, atol=1e-4)
        assert change.abs().max() > 0.1
