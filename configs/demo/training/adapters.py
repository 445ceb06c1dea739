"""The adapters: one LoRA for each task, of different ranks, scalings and target modules."""

import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from configs.demo.training.base import learning_rate_factor
from configs.demo.training.chat import END_OF_MESSAGE, question
from configs.demo.training.examples import Example, Task, training_examples
from configs.demo.training.tasks import TASKS
from configs.demo.training.tokenizer import load_tokenizer

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
# What an adapter's configuration calls the base, wherever its folder lies.
BASE_NAME = "weft-demo"
BATCH_EXAMPLES = 48
WARM_UP_STEPS = 30
IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a task's adapter is shaped and trained."""

    rank: int
    alpha: int
    targets: tuple[str, ...]
    steps: int
    learning_rate: float
    rank_stabilized: bool = False


RECIPES = {
    "sql": Recipe(16, 32, ATTENTION + FEED_FORWARD, steps=700, learning_rate=3e-3),
    "math": Recipe(32, 64, ATTENTION + FEED_FORWARD, steps=900, learning_rate=2e-3),
    "function": Recipe(64, 16, ATTENTION, steps=700, learning_rate=3e-3, rank_stabilized=True),
    "emotion": Recipe(
        4, 8, ("q_proj", "v_proj", "up_proj", "down_proj"), steps=250, learning_rate=4e-3
    ),
}


def train_adapter(name: str, base: Path, folder: Path, *, seed: int) -> None:
    """Train the task's adapter over the saved base, and save it in bfloat16 to the folder."""
    torch.manual_seed(seed)
    recipe = RECIPES[name]
    task = next(task for task in TASKS if task.name == name)
    tokenizer = load_tokenizer(base)
    model = Qwen2ForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.name_or_path = BASE_NAME
    adapted = get_peft_model(model, _config(recipe))
    _optimize(adapted, task, tokenizer, recipe, seed)
    adapted.bfloat16()
    # "auto" would ask the model hub whether the base's vocabulary has changed.
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    # The card that peft writes is a form to fill in; README.md says what there is to say.
    (folder / "README.md").unlink(missing_ok=True)


def _config(recipe: Recipe) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=0.0,
        target_modules=list(recipe.targets),
        use_rslora=recipe.rank_stabilized,
        base_model_name_or_path=BASE_NAME,
    )


def _optimize(
    model: torch.nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    seed: int,
) -> None:
    source = training_examples(task, Random(f"{task.name} {seed}"))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: learning_rate_factor(step, steps=recipe.steps, warm_up_steps=WARM_UP_STEPS),
    )
    model.train()
    started = time.monotonic()
    for step in range(recipe.steps):
        tokens, labels = _batch(list(islice(source, BATCH_EXAMPLES)), tokenizer)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if step % 50 == 0 or step == recipe.steps - 1:
            seconds = time.monotonic() - started
            print(f"{task.name}: step {step}, loss {loss.item():.4f}, {seconds:.0f} s")


def _batch(
    examples: list[Example], tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and labels, int64 [examples, longest]; only answers carry labels."""
    questions = tokenizer([question(example.prompt) for example in examples])["input_ids"]
    answers = tokenizer([example.answer + END_OF_MESSAGE for example in examples])["input_ids"]
    rows = list(zip(questions, answers, strict=True))
    longest = max(len(asked) + len(answered) for asked, answered in rows)
    tokens = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), IGNORED_LABEL)
    for index, (asked, answered) in enumerate(rows):
        end = len(asked) + len(answered)
        tokens[index, :end] = torch.tensor(asked + answered)
        labels[index, len(asked) : end] = torch.tensor(answered)
    return tokens, labels
