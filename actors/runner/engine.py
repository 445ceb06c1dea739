"""What executes steps: the boundary between the runner actor and the tensors."""

from __future__ import annotations

from typing import Protocol

from weft.runtime.messages import RunnerReady, Step, StepDone


class Engine(Protocol):
    """Holds the weights, the pages of KV and adapters, and one state per row."""

    def ready(self) -> RunnerReady:
        """Return what the scheduler must know about this device."""
        ...

    def execute(self, step: Step) -> StepDone:
        """Apply what the step changes, compute it, and return its tokens.

        A step that breaks the rules (an unknown row, a page out of range) is a bug in the
        scheduler, and an assertion here.
        """
        ...

    def counters(self) -> dict[str, float]:
        """Return rows, pages and slots in use, after asserting their invariants."""
        ...
