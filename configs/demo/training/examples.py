"""A task's example, and which examples are held out of every training set.

An example is held out by the digest of its key, so the decision needs no list and never changes.
The key is what the answer is about (the statement, the call, the sum), not the wording: a held-out
statement is seen in training under no wording at all, neither as a prompt nor as an answer.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

# One key in this many is held out.
HELD_OUT_ONE_IN = 10


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt (a single user message) and the only answer that counts as right."""

    prompt: str
    answer: str
    key: str


@dataclass(frozen=True, slots=True)
class Task:
    """A task: its name, which is also its adapter's, and a generator of single examples."""

    name: str
    draw: Callable[[Random], Example]


def is_held_out(example: Example) -> bool:
    """Tell whether the example belongs to the held-out tenth."""
    digest = hashlib.sha256(example.key.encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


def training_examples(task: Task, random: Random) -> Iterator[Example]:
    """Yield training examples without end, repeats included."""
    while True:
        example = task.draw(random)
        if not is_held_out(example):
            yield example


def held_out_examples(task: Task, count: int, seed: int) -> list[Example]:
    """Return `count` held-out examples with distinct prompts, the same ones for the same seed."""
    random = Random(f"held out {task.name} {seed}")
    found: dict[str, Example] = {}
    while len(found) < count:
        example = task.draw(random)
        if is_held_out(example):
            found.setdefault(example.prompt, example)
    return list(found.values())
