import os
import select
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.actors.adapters.folders import BASE
from tests.actors.adapters.sandboxed import pids_of
from tests.checkpoints import save_model
from weft.actors.adapters import building, peft_config, safetensors
from weft.actors.adapters.base import BaseShapes
from weft.actors.adapters.sandbox import SandboxedLoader
from weft.runtime.config import Config


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_model(folder, "llama")
    return folder


@pytest.fixture
def saved_by_peft(base_folder, tmp_path):
    """A function from a PEFT configuration to the folder that PEFT saves, and its model."""

    def save(config, *, dtype=torch.float32, load=AutoModelForCausalLM):
        adapted = get_peft_model(load.from_pretrained(base_folder), config)
        torch.manual_seed(0)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                with torch.no_grad():
                    parameter.copy_(torch.randn_like(parameter))
        adapted.to(dtype).save_pretrained(tmp_path, save_embedding_layers=False)
        return tmp_path, adapted

    return save


@pytest.fixture
def made(saved_by_peft):
    """A function from LoRA options to the folder that PEFT saves, and its model."""

    def make(*, dtype=torch.float32, load=AutoModelForCausalLM, **options):
        config = LoraConfig(**{"task_type": "CAUSAL_LM"} | options)
        return saved_by_peft(config, dtype=dtype, load=load)

    return make


@pytest.fixture(scope="session")
def read(base_folder):
    """A function from a folder to what the store makes of it. Raises ``BadAdapter``."""
    base = BaseShapes.load(str(base_folder))

    def build(folder):
        config = peft_config.parse((folder / "adapter_config.json").read_bytes())
        found = safetensors.parse((folder / "adapter_model.safetensors").read_bytes())
        return building.build(config, found, base, rank_max=64, whole_bytes_max=2**20)

    return build


@pytest.fixture(scope="session")
def base():
    """What adapters are checked against."""
    return BASE


@pytest.fixture
def loader(tmp_path, base):
    """A loader with children of its own, which leaves no process, file or descriptor behind."""
    before = sorted(os.listdir("/proc/self/fd"))
    with select.epoll() as wakes:
        loader = SandboxedLoader(Config(model="/base"), base, tmp_path / "run", wakes)
        yield loader
        loader.check()
        pids = pids_of(loader)
        loader.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert list((tmp_path / "run").iterdir()) == []
