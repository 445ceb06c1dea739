"""Answers that wait until the tokenizer resolves names by the catalog that makes them true."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from weft.actors.adapters.asked import Asked


class _Unseen(NamedTuple):
    version: int
    asked: Asked
    outcome: str


class Unseen:
    """What is done, and cannot be said yet."""

    def __init__(self) -> None:
        self._answers: deque[_Unseen] = deque()

    def __len__(self) -> int:
        return len(self._answers)

    def wait(self, version: int, asked: Asked, outcome: str) -> None:
        """Say it once this catalog has been seen; versions come in their order."""
        self._answers.append(_Unseen(version, asked, outcome))

    def seen(self, version: int) -> list[tuple[Asked, str]]:
        """Return what can be said now, with its outcome."""
        due = []
        while self._answers and self._answers[0].version <= version:
            _, asked, outcome = self._answers.popleft()
            due.append((asked, outcome))
        return due
