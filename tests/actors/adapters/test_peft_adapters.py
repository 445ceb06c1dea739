"""Adapters as PEFT saves them: what is kept of them is what PEFT would add to the base."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load
from transformers import AutoModel, AutoModelForCausalLM

from tests.checkpoints import MODULES, save_model
from weft.actors.adapters import adapter, peft_config, safetensors
from weft.actors.adapters.base import BaseShapes
from weft.actors.adapters.errors import BadAdapter


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_model(folder, "llama")
    return folder


@pytest.fixture
def made(base_folder, tmp_path):
    """A function from LoRA options to the folder that PEFT saves, and its model."""

    def make(*, dtype=torch.float32, **options):
        model = AutoModelForCausalLM.from_pretrained(base_folder)
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
        torch.manual_seed(0)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                with torch.no_grad():
                    parameter.copy_(torch.randn_like(parameter))
        adapted.to(dtype).save_pretrained(tmp_path, save_embedding_layers=False)
        return tmp_path, adapted

    return make


def read(folder, base_folder):
    config = peft_config.parse((folder / "adapter_config.json").read_bytes())
    found = safetensors.parse((folder / "adapter_model.safetensors").read_bytes())
    return adapter.build(config, found, BaseShapes.load(str(base_folder)), rank_max=64)


@pytest.mark.parametrize(
    "options",
    [
        {"r": 8, "target_modules": list(MODULES)},
        {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "mlp.up_proj"]},
        {"r": 8, "use_rslora": True, "target_modules": ["v_proj"]},
        {"r": 8, "target_modules": "all-linear"},
        {"r": 8, "target_modules": r".*\.1\.self_attn\.(q|o)_proj"},
        {
            "r": 8, "target_modules": ["q_proj", "k_proj"],
            "rank_pattern": {"k_proj": 2, r"layers\.0\.self_attn\.q_proj": 5},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 3},
        },
        {"r": 4, "target_modules": ["o_proj"], "dtype": torch.bfloat16},
        {"r": 4, "target_modules": ["o_proj"], "dtype": torch.float16},
        {"r": 4, "target_modules": ["gate_proj"], "lora_dropout": 0.1},
        {"r": 4, "target_modules": "all-linear", "exclude_modules": ["down_proj", "q_proj"]},
        {"r": 4, "target_modules": list(MODULES), "exclude_modules": r".*\.0\..*"},
        {
            "r": 4, "use_rslora": True, "target_modules": ["up_proj"],
            "rank_pattern": {"up_proj": 9}, "alpha_pattern": {r"1\.mlp\.up_proj": 5},
        },
    ],
    ids=lambda options: "-".join(options),
)  # fmt: skip
def test_scale_b_a_is_what_peft_adds_to_the_weight(made, base_folder, options):
    folder, model = made(**options)
    kept = read(folder, base_folder)
    file = load(b"".join(bytes(part) for part in kept.file()))
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert len(layers) == len(kept.scales) > 0
    for name, module in layers.items():
        _, _, layer, _, short = name.split(".")
        key = f"layers.{layer}.{short}"
        delta = kept.scales[key] * (file[f"{key}.B"].float() @ file[f"{key}.A"].float())
        expected = module.float().get_delta_weight("default")
        torch.testing.assert_close(delta, expected, rtol=1e-5, atol=1e-5)
    assert kept.rank == max(tensor.shape[0] for name, tensor in file.items() if name[-1] == "A")


def test_an_adapter_of_the_model_without_its_head_is_the_same(base_folder, tmp_path):
    """PEFT names its tensors without "model."."""
    adapters = []
    for kind in (AutoModel, AutoModelForCausalLM):
        options = {"r": 4, "target_modules": ["k_proj", "down_proj"]}
        adapted = get_peft_model(kind.from_pretrained(base_folder), LoraConfig(**options))
        torch.manual_seed(0)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                with torch.no_grad():
                    parameter.copy_(torch.randn_like(parameter))
        adapted.save_pretrained(tmp_path / kind.__name__)
        adapters.append(read(tmp_path / kind.__name__, base_folder))
    assert adapters[0].digest == adapters[1].digest


def test_the_digest_is_of_the_content_alone(made, base_folder, tmp_path):
    folder, _ = made(r=4, target_modules=["q_proj"])
    digest = read(folder, base_folder).digest
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"base_model_name_or_path": "elsewhere"}, indent=7))
    assert read(folder, base_folder).digest == digest
    path.write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] + 1}))
    assert read(folder, base_folder).digest != digest


@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")  # lora_bias is new to it
@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_computed_is_refused_by_name(made, base_folder, options, field):
    folder, _ = made(r=4, target_modules=["q_proj"], **options)
    with pytest.raises(BadAdapter, match=f"{field}: .*train|{field}: .*name the layers"):
        read(folder, base_folder)


def test_adapters_of_embeddings_are_refused(made, base_folder):
    folder, _ = made(r=4, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(BadAdapter, match=r"embed.*not supported"):
        read(folder, base_folder)
