"""Adapters that change more than linear layers, saved the way users save theirs, and their oracle.

PEFT keeps some of them in the base itself, so each needs a model of its own.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from tests.checkpoints import MODULES, SMALL, save_adapter

VOCABULARY = SMALL["vocab_size"]
BOTH = ["embed_tokens", "lm_head"]


class Kind(NamedTuple):
    """Options of an adapter, and how many tokens it has beyond the base's."""

    options: dict[str, Any]
    added: int = 0

    @property
    def tokens(self) -> int:
        """How many tokens it knows."""
        return VOCABULARY + self.added


KINDS = {
    "embedding": Kind({"target_modules": ["q_proj", "embed_tokens"], "r": 4}),
    "head": Kind({"target_modules": ["v_proj", "lm_head"], "r": 12, "lora_alpha": 16}),
    "both": Kind({"target_modules": [*BOTH, "up_proj"], "use_rslora": True}),
    "norms": Kind({"target_modules": ["q_proj"], "modules_to_save": ["norm"]}),
    "own-head": Kind(
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "input_layernorm"]}
    ),
    "own-embedding": Kind({"target_modules": ["o_proj"], "modules_to_save": ["embed_tokens"]}),
    "own-both": Kind({"target_modules": list(MODULES), "modules_to_save": BOTH}),
    "tokens": Kind({"target_modules": ["q_proj"], "trainable_token_indices": [3, 77, 5]}),
    "tokens-of-each": Kind(
        {
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": [3, 77], "lm_head": [9, 3]},
        }
    ),
    "dora": Kind(
        {"target_modules": ["q_proj"], "use_dora": True, "modules_to_save": ["lm_head", "norm"]}
    ),
    "added": Kind({"target_modules": ["q_proj"]}, 3),
    "added-and-updated": Kind({"target_modules": ["q_proj", *BOTH], "r": 5}, 130),
    "added-and-own": Kind({"target_modules": ["down_proj"], "modules_to_save": BOTH}, 1),
    "added-and-tokens": Kind(
        {"target_modules": ["q_proj"], "trainable_token_indices": [160, 165, 4]}, 8
    ),
    "plain": Kind({"target_modules": list(MODULES)}),
}

# Beside them, of a base that ties its head to its embedding.
TIED_KINDS = {
    "tied-update": Kind(
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}
    ),
    "tied-own": Kind(
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        }
    ),
}


def kinds_of(model_folder: Path) -> dict[str, Kind]:
    """All that a model can have."""
    is_tied = _load(model_folder).config.tie_word_embeddings
    return KINDS | (TIED_KINDS if is_tied else {})


def save(folder: Path, model_folder: Path, kinds: dict[str, Kind]) -> dict[str, Path]:
    """Random adapters, also of the rows that they add, by name."""
    paths = {name: folder / name for name in kinds}
    for seed, (name, kind) in enumerate(kinds.items()):
        model = _load(model_folder, kind)
        torch.manual_seed(seed)
        with torch.no_grad():
            for matrix in (model.get_input_embeddings(), model.get_output_embeddings()):
                # Larger than others: they shall be sampled.
                added = matrix.weight[VOCABULARY:]
                added.copy_(torch.randn_like(added) * 0.4)
        config = LoraConfig(task_type="CAUSAL_LM", **kind.options)
        save_adapter(paths[name], model, config, seed=seed)
    return paths


def oracle(model_folder: Path, path: Path, kind: Kind):
    """A model with this adapter alone."""
    return PeftModel.from_pretrained(_load(model_folder, kind), path).eval()


def _load(model_folder: Path, kind: Kind | None = None):
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    if kind is not None and kind.added:
        model.resize_token_embeddings(kind.tokens)
    return model
