"""What every engine under measurement is given, and what it gives back."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.bench.load import Load

Prompt = tuple[str | None, list[int]]  # an adapter's name, None for the base; token ids


class Setting(NamedTuple):
    """What is served, and how."""

    model: Path  # a Hugging Face folder whose token i is the text "<i>"
    adapters: dict[str, Path]  # PEFT folders by name; empty: LoRA is not even switched on
    rank_max: int
    dtype: str
    load: Load
    threads: int
    peers: Path  # where the other engines are installed
    place: Path  # for files that an engine needs beside these

    @property
    def context(self):
        """Tokens that a request may have in all."""
        return self.load.prompt_tokens + self.load.output_tokens + 16


class Answer(NamedTuple):
    """What one request came to."""

    count: int  # output tokens, as the engine counts them
    tokens: list[int]


Ask = Callable[[list[Prompt], int], list[Answer]]  # prompts sent at once, tokens of each answer
