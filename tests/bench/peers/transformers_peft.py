"""transformers, with PEFT's mixed batches (``adapter_names``), in this process."""

from contextlib import contextmanager
from typing import NamedTuple

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.bench.peers.engine import Answer


class Peft(NamedTuple):
    """transformers, without PEFT's layers and with them; every adapter is loaded."""

    plain: torch.nn.Module
    adapted: PeftModel | None


def missing(peers):
    """Say what is needed first; None: nothing."""
    return None


@contextmanager
def start(setting):
    """Yield ``Ask``."""
    torch.set_num_threads(setting.threads)
    model = load(setting.model, setting.adapters, setting.dtype)

    def ask(prompts, tokens):
        rows = generate(model, prompts, tokens)[:, len(prompts[0][1]) :]
        return [Answer(len(row), row) for row in rows.tolist()]

    yield ask


def load(folder, adapters, dtype):
    """Load a folder's model twice: once plain, and once with all adapters."""
    adapted = None
    for name, path in adapters.items():
        if adapted is None:
            adapted = PeftModel.from_pretrained(_base(folder, dtype), path, name)
        else:
            adapted.load_adapter(path, name)
    if adapted is not None:
        adapted = adapted.to(getattr(torch, dtype)).eval()
    return Peft(_base(folder, dtype), adapted)


@torch.inference_mode()
def generate(model, prompts, count):
    """Continue prompts of equal lengths by ``count`` tokens, greedily, in one batch."""
    tokens = torch.tensor([prompt for _, prompt in prompts])
    options = {
        "attention_mask": torch.ones_like(tokens), "do_sample": False,
        "min_new_tokens": count, "max_new_tokens": count, "pad_token_id": 0,
    }  # fmt: skip
    if all(name is None for name, _ in prompts):
        return model.plain.generate(input_ids=tokens, **options)
    options["adapter_names"] = [name or "__base__" for name, _ in prompts]
    return model.adapted.generate(input_ids=tokens, **options)


def _base(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
