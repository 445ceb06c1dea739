"""Qwen 2 models and LoRA adapters as GGUF files, for llama.cpp.

Its own converter refuses tokenizers that it does not know. The format is described in
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, the keys in the package ``gguf``.
"""

import json

import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from safetensors.torch import load_file
from transformers import AutoConfig

from tests.bench.peers.tokenizer import piece

TYPES = {
    "float32": GGMLQuantizationType.F32,
    "float16": GGMLQuantizationType.F16,
    "bfloat16": GGMLQuantizationType.BF16,
}
ARCHITECTURE = "qwen2"


def save_model(folder, place, dtype):
    """Write a Hugging Face folder's model, with matrices in ``dtype``; return the file."""
    path = place / f"{folder.name}-{dtype}.gguf"
    if path.exists():
        return path
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == ARCHITECTURE
    writer = GGUFWriter(path, ARCHITECTURE)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([piece(token) for token in range(config.vocab_size)])
    # Without one of its own a model ends with token 11; this one is rarely anybody's answer.
    writer.add_eos_token_id(config.vocab_size - 1)
    writer.add_token_merges(["< >"])  # it must have one; nothing here is encoded
    names = get_tensor_name_map(MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, tensor in load_file(folder / "model.safetensors").items():
        _add(writer, names.get_name(name, (".weight", ".bias")), tensor, dtype)
    _finish(writer)
    return path


def save_adapter(folder, model, place, dtype):
    """Write a PEFT folder's adapter of a model that was written here; return the file."""
    path = place / f"{model.stem}-{folder.name}.gguf"
    if path.exists():
        return path
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    writer = GGUFWriter(path, ARCHITECTURE)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    names = get_tensor_name_map(MODEL_ARCH.QWEN2, len(tensors))
    for name, tensor in tensors.items():
        module, _, half = name.removeprefix("base_model.model.").partition(".lora_")
        side = {"A.weight": "lora_a", "B.weight": "lora_b"}[half]
        _add(writer, f"{names.get_name(module)}.weight.{side}", tensor, dtype)
    _finish(writer)
    return path


def _add(writer, name, tensor, dtype):
    assert name is not None
    if tensor.ndim == 1:  # norms and biases, which llama.cpp has in float32 only
        dtype = "float32"
    rounded = tensor.to(getattr(torch, dtype)).contiguous()
    # numpy has no bfloat16: bytes, and what they are.
    writer.add_tensor(name, rounded.view(torch.uint8).numpy(), raw_dtype=TYPES[dtype])


def _finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
