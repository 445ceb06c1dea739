"""Tiny random checkpoints and adapters, saved the way users save theirs."""

import random
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

ARCHITECTURES = {
    "llama": lambda: LlamaConfig(**SMALL, tie_word_embeddings=False),
    "llama-mha-bias": lambda: LlamaConfig(
        **SMALL | {"num_key_value_heads": 4}, attention_bias=True, mlp_bias=True
    ),
    "llama3.1": lambda: LlamaConfig(**SMALL, rope_parameters=LLAMA3_ROPE),
    "codellama": lambda: LlamaConfig(
        **SMALL, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}
    ),
    "llama-yarn": lambda: LlamaConfig(
        **SMALL,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    ),
    "mistral": lambda: MistralConfig(**SMALL, sliding_window=16, head_dim=24),
    "qwen2": lambda: Qwen2Config(**SMALL, tie_word_embeddings=False),
    "qwen2.5-tied": lambda: Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen2-window": lambda: Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=16, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**SMALL, head_dim=32),
}

HALF_BILLION = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def random_model(config, *, seed=0, dtype=torch.float32):
    """A model whose weights are large enough for its outputs to differ, and biases that count."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5 * 1.5)
    return model.to(dtype)


def save_model(folder: Path, architecture: str, *, seed=0, dtype=torch.float32, **save):
    model = random_model(ARCHITECTURES[architecture](), seed=seed, dtype=dtype)
    model.save_pretrained(folder, **save)
    return model


def adapter_configs(count: int, *, seed=0, rank_max=64):
    """LoRA configurations of ranks 4 to 64, on all modules or on some, plain or rank-stabilised."""
    rng = random.Random(seed)
    configs = []
    for index in range(count):
        rank = [4, 8, 16, 32, 64, 5, 12][index % 7]
        modules = list(MODULES) if index % 3 == 0 else rng.sample(MODULES, rng.randint(1, 6))
        configs.append(
            LoraConfig(
                r=min(rank, rank_max),
                lora_alpha=rng.choice([8, 16, 24]),
                target_modules=modules,
                use_rslora=index % 5 == 4,
                rank_pattern={modules[0]: 3} if index % 4 == 1 else {},
                alpha_pattern={modules[-1]: 20} if index % 4 == 2 else {},
                task_type="CAUSAL_LM",
            )
        )
    return configs


def every_kind() -> list[LoraConfig]:
    """LoRA configurations of all that is more than A and B of some modules in each layer."""
    few = ["q_proj", "v_proj", "o_proj", "down_proj"]
    options = [
        {"r": 8, "target_modules": list(MODULES), "use_dora": True},
        {"r": 5, "target_modules": few, "use_dora": True, "use_rslora": True},
        {"r": 4, "target_modules": ["up_proj"], "use_dora": True, "layers_to_transform": [1]},
        {"r": 8, "target_modules": list(MODULES), "lora_bias": True, "lora_alpha": 12},
        {"r": 3, "target_modules": few, "lora_bias": True, "exclude_modules": r".*\.0\..*"},
        {"r": 64, "target_modules": "all-linear", "use_dora": True, "lora_alpha": 32},
        {"r": 8, "target_modules": list(MODULES)},
    ]
    return [LoraConfig(task_type="CAUSAL_LM", **each) for each in options]


def save_adapters(folder: Path, model, count: int, *, seed=0, configs=None) -> dict[str, Path]:
    """Random adapters of a model, by name. The model stays as it was."""
    names = {}
    for index, config in enumerate(configs or adapter_configs(count, seed=seed)):
        path = folder / f"adapter{index}"
        model = save_adapter(path, model, config, seed=1000 * seed + index)
        names[path.name] = path
    return names


def save_adapter(path: Path, model, config: LoraConfig, *, seed: int):
    """A random adapter of a model; returns the model, as it was."""
    torch.manual_seed(seed)
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        with torch.no_grad():
            if "lora_magnitude" in name:
                parameter.mul_(1 + torch.randn_like(parameter) * 0.3)
            elif "modules_to_save" in name or "trainable_tokens_delta" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "lora_embedding_A" in name:  # of which a token has a column
                parameter.copy_(torch.randn_like(parameter) * 0.3)
            elif "lora_" in name and name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter) * 0.2)
            elif "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3 / parameter.shape[0] ** 0.5)
    adapted.save_pretrained(path)
    return adapted.unload()


def peft_model(model_folder: Path, adapters: dict[str, Path], **load):
    """The oracle: transformers with every adapter loaded by PEFT."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, **load).eval()
    adapted = None
    for name, path in adapters.items():
        if adapted is None:
            adapted = PeftModel.from_pretrained(model, path, adapter_name=name)
        else:
            adapted.load_adapter(path, adapter_name=name)
    return adapted.eval() if adapted is not None else model


def greedy(
    model, adapter: str | dict[str, float] | None, prompt: list[int], count: int
) -> list[int]:
    """What transformers generates, one sequence at a time.

    ``adapter``: a name, several with what they are multiplied by, or None for the base.
    """
    arguments = {
        "input_ids": torch.tensor([prompt]),
        "attention_mask": torch.ones(1, len(prompt), dtype=torch.long),
        "max_new_tokens": count,
        "min_new_tokens": count,
        "do_sample": False,
        "pad_token_id": 0,
    }
    with torch.inference_mode():
        if adapter is None and isinstance(model, PeftModel):
            with model.disable_adapter():
                output = model.generate(**arguments)
        else:
            if adapter is not None:
                scales = {adapter: 1.0} if isinstance(adapter, str) else adapter
                if len(scales) == 1:
                    model.set_adapter(*scales)  # which activated LoRA asks for its invocation
                else:
                    model.base_model.set_adapter(list(scales))
                for layer in model.modules():
                    if isinstance(layer, LoraLayer):
                        for name, scale in scales.items():
                            layer.set_scale(name, scale)
            output = model.generate(**arguments)
    return output[0, len(prompt) :].tolist()
