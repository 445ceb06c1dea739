"""Shows how far a run's start has come: one changing line on a terminal, few lines elsewhere."""

from __future__ import annotations

from typing import TextIO

from weft.runtime.status import Progress

# Without a terminal, a line at each of these steps of a long load.
PLAIN_STEP = 0.25


class ProgressDisplay:
    """What each process is doing until it is ready."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self._doing: dict[str, Progress] = {}
        self._width = 0  # of the line on the terminal

    def show(self, role: str, progress: Progress) -> None:
        """Take in what a process said."""
        before = self._doing.get(role)
        self._doing[role] = progress
        if self._is_terminal:
            self._redraw()
        elif (
            before is None
            or before.what != progress.what
            or before.share // PLAIN_STEP != progress.share // PLAIN_STEP
        ):
            print(_line(role, progress), file=self._out, flush=True)

    def done(self, role: str) -> None:
        """Hear that a process is ready, or has ended."""
        if self._doing.pop(role, None) and self._is_terminal:
            self._redraw()

    def _redraw(self) -> None:
        text = "; ".join(_line(role, progress) for role, progress in self._doing.items())
        # Blanks cover what the last line left, and the cursor ends where the next output starts.
        print(f"\r{text:<{self._width}}\r", end="", file=self._out, flush=True)
        self._width = len(text)


def _line(role: str, progress: Progress) -> str:
    return f"{role}: {progress.what} {progress.share:.0%}"
