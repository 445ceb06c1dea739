"""Checkpoints of the measured shapes, of random weights, written without a model in memory."""

import json

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from tests.checkpoints import HALF_BILLION

FILE_BYTES = 4 * 2**30
NUMBERS = 2**24  # that differ; a matrix repeats them

CONFIGS = {
    "tiny": lambda: Qwen2Config(
        hidden_size=160, intermediate_size=200, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=512, max_position_embeddings=1024,
    ),
    "0.5b": lambda: Qwen2Config(**HALF_BILLION),
    "8b": lambda: LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    ),
}  # fmt: skip


def save(name, folder, dtype):
    """Write a model's folder, without a tokenizer."""
    config = CONFIGS[name]()
    config.dtype = dtype
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    torch.manual_seed(0)
    numbers = torch.randn(NUMBERS)
    places, held = {}, {}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        held[key] = _fill(key, tensor, numbers, dtype)
        if sum(each.nbytes for each in held.values()) > FILE_BYTES:
            places |= _write(held, folder)
            held = {}
    places |= _write(held, folder)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write(tensors, folder):
    """Write one file; return the name of each tensor's."""
    name = f"model-{len(list(folder.glob('*.safetensors'))):05}.safetensors"
    save_file(tensors, folder / name)
    return dict.fromkeys(tensors, name)


def _fill(key, tensor, numbers, dtype):
    """Return values that keep activations about as large as they were."""
    if tensor.ndim == 1:
        return torch.full(tensor.shape, float("norm" in key), dtype=dtype)
    repeats = -(-tensor.numel() // len(numbers))
    values = numbers.to(dtype).repeat(repeats)[: tensor.numel()].view(tensor.shape)
    return values / tensor.shape[-1] ** 0.5
