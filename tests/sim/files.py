"""Adapter folders that need no disk."""

import json

import numpy as np
import safetensors.numpy

from weft.actors.adapters.base import BaseShapes
from weft.actors.adapters.files import FileError

BASE = BaseShapes(num_hidden_layers=1, hidden_size=4, intermediate_size=4, num_attention_heads=1)


class MemoryFiles:
    """Folders, and what the store writes."""

    def __init__(self, folders):
        self.folders = folders  # folder -> name -> content
        self.written = {}
        self.is_full = False

    def names(self, folder):
        if folder not in self.folders:
            raise FileError(f"{folder} is gone; put it back")
        return sorted(self.folders[folder])

    def subfolders(self, folder):
        prefix = f"{folder}/"
        return sorted(path.removeprefix(prefix) for path in self.folders if path.startswith(prefix))

    def read(self, folder, name, *, bytes_max):
        try:
            return self.folders[folder][name]
        except KeyError:
            raise FileError(f"{name} is gone; put it back") from None

    def write(self, path, parts):
        if self.is_full:
            raise FileError(f"{path}: No space left on device")
        self.written[path] = b"".join(parts)

    def remove(self, path):
        del self.written[path]


def adapter_folder(number, *, rank=2, **options):
    """A PEFT folder whose weights are unlike any other number's."""
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }  # fmt: skip
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    weights = {
        name.format("A"): np.full((rank, 4), number, np.float32),
        name.format("B"): np.full((4, rank), 1, np.float32),
    }
    return {
        "adapter_config.json": json.dumps(config | options).encode(),
        "adapter_model.safetensors": safetensors.numpy.save(weights),
    }
