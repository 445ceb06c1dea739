"""What is served: the demonstration's model or a random one of half a billion, and adapters."""

import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from tests.actors import made_tokenizers
from tests.checkpoints import HALF_BILLION, MODULES, random_model

DEMO = Path(__file__).parents[2] / "configs/demo/model"
SHAPES = ("demo", "0.5b")
RANKS = (16, 64, 4, 32, 8)  # of adapters in turn


def model_folder(shape, place, dtype):
    """A folder with a model of a shape in a type, and with a tokenizer."""
    folder = place / f"{shape}-{str(dtype).removeprefix('torch.')}"
    if shape == "demo":
        model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=dtype)
        shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    else:
        model = random_model(Qwen2Config(**HALF_BILLION), dtype=dtype)
        shutil.copytree(made_tokenizers.save("byte_level", place), folder)
        _name_every_token(folder, model.config.vocab_size)
    model.save_pretrained(folder)
    return folder


def _name_every_token(folder, count):
    """Extend a tokenizer to ``count`` tokens: whatever a random model says is then text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f" {token:x}" for token in range(len(tokenizer), count)])
    tokenizer.save_pretrained(folder)


def adapter_folders(folder, place, count, *, ranks=RANKS, std=0.02):
    """Random adapters of a model, by name: of these ranks in turn on every linear layer."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    folders = {}
    for index in range(count):
        torch.manual_seed(index)
        rank = ranks[index % len(ranks)]
        config = LoraConfig(
            r=rank, lora_alpha=rank, target_modules=list(MODULES), task_type="CAUSAL_LM"
        )
        adapted = get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=std)
        path = place / f"adapter{index}"
        adapted.save_pretrained(path, save_embedding_layers=False)
        model = adapted.unload()
        folders[path.name] = path
    return folders
