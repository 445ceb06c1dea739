"""Ask every model of the demonstration the same things at once: `python -m configs.demo.ask`.

All requests run in the same batches, each row through its own adapter; the table says in which
steps of the engine each answer was computed.
"""

import asyncio
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from weft.runtime.client import AsyncClient, Finished, Text

CONFIG = Path(__file__).resolve().parents[1] / "demo.yaml"
QUESTIONS = (
    "Show the name of the 15 hotels with the highest rooms.",
    "What is 57 plus 68?",
    "Convert 77 francs to yen.",
    "My best friend moved away and I miss her.",
)
COLUMN_MIN = 16


class Answer(NamedTuple):
    """What a model said, and the first and last step that computed it."""

    model: str
    text: str
    first_step: int
    last_step: int


def main() -> None:
    """Start a server, ask, show, stop."""
    with _server() as run_dir:
        models, answers = asyncio.run(_ask_all(run_dir))
    width = shutil.get_terminal_size((120, 24)).columns
    column = max(COLUMN_MIN, (width - 1) // len(models) - 2)
    print("\n".join(_table(models, answers, column)))
    print(_summary([answer for row in answers for answer in row]))


@contextmanager
def _server() -> Iterator[Path]:
    command = [sys.executable, "-m", "weft", "serve", str(CONFIG), "--port", "0"]
    command += ["--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            for line in server.stdout:
                if place := re.match(r" +ZeroMQ +(.+)", line):
                    yield Path(place[1])
                    return
            raise SystemExit("the server did not start")
        finally:
            server.terminate()
            server.stdout.close()


async def _ask_all(run_dir: Path) -> tuple[list[str], list[list[Answer]]]:
    """Return the models, and for each question the answers of all of them."""
    async with await AsyncClient.connect(run_dir) as client:
        models = [model.name for model in await client.models()]
        asked = [_ask(client, model, question) for question in QUESTIONS for model in models]
        answers = await asyncio.gather(*asked)
    rows = [answers[start : start + len(models)] for start in range(0, len(answers), len(models))]
    return models, rows


async def _ask(client: AsyncClient, model: str, question: str) -> Answer:
    text, messages = "", [{"role": "user", "content": question}]
    async for event in client.generate(
        messages=messages, model=model, temperature=0, max_tokens=96
    ):
        match event:
            case Text(text=piece):
                text += piece
            case Finished(first_step=int(first_step), last_step=int(last_step)):
                return Answer(model, text, first_step, last_step)
    raise SystemExit(f"{model} did not answer")


def _table(models: list[str], answers: list[list[Answer]], column: int) -> Iterator[str]:
    for question, row in zip(QUESTIONS, answers, strict=True):
        yield f"\n> {question}\n"
        yield "  ".join(model.ljust(column) for model in models)
        cells = [
            [*textwrap.wrap(answer.text, column), f"[steps {answer.first_step}-{answer.last_step}]"]
            for answer in row
        ]
        for line in range(max(map(len, cells))):
            parts = [cell[line] if line < len(cell) else "" for cell in cells]
            yield "  ".join(part.ljust(column) for part in parts).rstrip()


def _summary(answers: list[Answer]) -> str:
    """Return which step computed most models at once, and how much that saved."""
    steps = range(max(answer.last_step for answer in answers) + 1)
    running = [
        [answer for answer in answers if answer.first_step <= step <= answer.last_step]
        for step in steps
    ]
    fullest = max(steps, key=lambda step: len(running[step]))
    alone = sum(answer.last_step - answer.first_step + 1 for answer in answers)
    models = {answer.model for answer in running[fullest]}
    return (
        f"\nStep {fullest} computed {len(running[fullest])} answers of {len(models)} models in one "
        f"batch. All {len(answers)} answers took {len(steps)} steps; one after the other they "
        f"would have taken about {alone}."
    )


if __name__ == "__main__":
    main()
