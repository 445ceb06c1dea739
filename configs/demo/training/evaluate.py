"""Measure the base and every adapter on every task: `python -m configs.demo.training.evaluate`.

An answer counts when the greedy continuation is the expected one, character for character. The
saved bfloat16 weights are loaded as float32, so the numbers do not hang on a machine's kernels.
"""

import argparse
import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from configs.demo.training.chat import question
from configs.demo.training.examples import Example, held_out_examples
from configs.demo.training.tasks import TASKS
from configs.demo.training.tokenizer import load_tokenizer
from configs.demo.training.train import DEMO_FOLDER, SEED

PROMPTS_PER_TASK = 200
# How many of each task's prompts, the first ones, go to held_out.jsonl.
PROMPTS_KEPT = 25
BATCH_PROMPTS = 100
# The longest right answer has fewer tokens.
ANSWER_TOKENS_MAX = 96
TABLE_BEGINS, TABLE_ENDS = "<!-- accuracy begins -->\n", "<!-- accuracy ends -->\n"

Sets = dict[str, list[Example]]


def main() -> None:
    """Print the table of accuracies; with `--write`, renew held_out.jsonl and README.md's table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=DEMO_FOLDER)
    parser.add_argument("--prompts", type=int, default=PROMPTS_PER_TASK, help="for each task")
    parser.add_argument("--samples", type=int, default=0, help="wrong answers to show, each cell")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    sets = {task.name: held_out_examples(task, arguments.prompts, SEED) for task in TASKS}
    table = accuracy_table(arguments.folder, sets, samples=arguments.samples)
    print(table)
    if arguments.write:
        _write_held_out(arguments.folder / "held_out.jsonl", sets)
        _write_table(arguments.folder / "README.md", table)


def accuracy_table(folder: Path, sets: Sets, *, samples: int) -> str:
    """Return the accuracies as a Markdown table: base and adapters down, tasks across."""
    tokenizer = load_tokenizer(folder / "model")
    tokenizer.padding_side = "left"
    lines = [f"| | {' | '.join(sets)} |", f"|---|{'---:|' * len(sets)}"]
    for name in ("base", *sets):
        model = load(folder, name)
        cells = []
        for task, examples in sets.items():
            answers = greedy_answers(model, tokenizer, [example.prompt for example in examples])
            pairs = list(zip(examples, answers, strict=True))
            wrong = [(example, answer) for example, answer in pairs if answer != example.answer]
            cells.append(f"{100 * (1 - len(wrong) / len(examples)):.1f} %")
            for example, answer in wrong[:samples]:
                print(f"{name} on {task}: {example.prompt}\n  {example.answer}\n  {answer}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def load(folder: Path, name: str) -> Qwen2ForCausalLM:
    """Load the base in float32, with the adapter of that name merged unless it is `base`."""
    model = Qwen2ForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    if name != "base":
        model = PeftModel.from_pretrained(model, folder / "adapters" / name).merge_and_unload()
    assert isinstance(model, Qwen2ForCausalLM), f"{type(model)} is not the base"
    return model


@torch.inference_mode()
def greedy_answers(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> list[str]:
    """Return the answer to each prompt as a single user message, without its end token."""
    answers: list[str] = []
    for start in range(0, len(prompts), BATCH_PROMPTS):
        texts = [question(prompt) for prompt in prompts[start : start + BATCH_PROMPTS]]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
        outputs = model.generate(  # type: ignore[misc]
            **inputs, max_new_tokens=ANSWER_TOKENS_MAX, do_sample=False
        )
        continued = outputs[:, inputs["input_ids"].shape[1] :]
        answers += tokenizer.batch_decode(continued, skip_special_tokens=True)
    return answers


def _write_held_out(path: Path, sets: Sets) -> None:
    lines = [
        json.dumps({"task": task, "prompt": example.prompt, "answer": example.answer})
        for task, examples in sets.items()
        for example in examples[:PROMPTS_KEPT]
    ]
    path.write_text("\n".join(lines) + "\n")


def _write_table(path: Path, table: str) -> None:
    before, rest = path.read_text().split(TABLE_BEGINS)
    after = rest.split(TABLE_ENDS)[1]
    path.write_text(before + TABLE_BEGINS + table + TABLE_ENDS + after)


if __name__ == "__main__":
    main()
