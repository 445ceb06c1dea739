"""What executes steps: the boundary between the runner actor and the tensors."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from weft.runtime.histogram import Histogram
from weft.runtime.messages import RunnerReady, Step, StepDone


class Launched(Protocol):
    """A step under way."""

    @property
    def is_done(self) -> bool:
        """Whether its answer can be had without waiting."""
        ...

    def collect(self) -> StepDone:
        """Wait for its end, and return its answer. Steps are collected as they were launched."""
        ...


class Engine(Protocol):
    """Holds the weights, the pages of KV and adapters, and one state per row."""

    def ready(self) -> RunnerReady:
        """Return what the scheduler must know about this device."""
        ...

    def launch(self, step: Step) -> Launched:
        """Apply what the step changes, and begin to compute it. ``STEPS_MAX`` may be under way.

        A step that breaks the rules (an unknown row, a page out of range) is a bug in the
        scheduler, and an assertion here.
        """
        ...

    def counters(self) -> dict[str, float]:
        """Return rows, pages and slots in use, after asserting their invariants."""
        ...

    @property
    def loads(self) -> Histogram:
        """How long adapters took to be copied to the device, in ``LOAD_BUCKETS_S``."""
        ...


# One that the device computes, and one that it begins with as soon as it is done.
STEPS_MAX = 2


class Done(NamedTuple):
    """A step that was computed when it was launched."""

    answer: StepDone

    @property
    def is_done(self) -> bool:
        """Always."""
        return True

    def collect(self) -> StepDone:
        """Return its answer."""
        return self.answer
