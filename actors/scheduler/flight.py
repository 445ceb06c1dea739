"""Steps that the runners have been sent and have not answered."""

from __future__ import annotations

from collections import deque

from weft.actors.scheduler.draft import Composed
from weft.actors.scheduler.sequence import Request, Sequence
from weft.runtime.messages import StepDone

# The one that is being computed, and the one that follows it without a pause.
STEPS_IN_FLIGHT = 2


class InFlight:
    """Steps in the order in which they were sent, which is that of the answers.

    Numbers go on when the runners are lost: no two steps of a scheduler have the same.
    """

    def __init__(self) -> None:
        self.sent = 0  # so it is the number of the next one
        self._steps: deque[Composed] = deque()
        self._done = 0
        self._compute_us = 0

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def is_full(self) -> bool:
        """Whether no further step may be sent."""
        return len(self._steps) >= STEPS_IN_FLIGHT

    @property
    def first(self) -> int:
        """The number of the first step without an answer, be it one that is yet to be sent."""
        return self.sent - len(self._steps)

    @property
    def sequences(self) -> set[Sequence]:
        """Everyone for whom these steps do something."""
        return {sequence for composed in self._steps for sequence in composed.sequences}

    def has_only(self, request: Request) -> bool:
        """Whether nobody else is being computed."""
        return all(sequence.request is request for sequence in self.sequences)

    def send(self, composed: Composed) -> None:
        """Note a step that goes to the runners."""
        assert composed.step.step == self.sent
        self._steps.append(composed)
        self.sent += 1

    def finish(self, done: StepDone) -> Composed:
        """Return the step that this is the answer to."""
        assert self._steps, f"an answer to step {done.step}, and none was sent"
        composed = self._steps.popleft()
        assert done.step == composed.step.step, f"step {done.step}, not {composed.step.step}"
        assert len(done.tokens) == len(composed.sampled)
        self._done += 1
        self._compute_us += done.compute_us
        return composed

    def lose(self) -> None:
        """Expect no answers any more: the runners are gone."""
        self._steps.clear()

    def counters(self) -> dict[str, float]:
        """Return how many were answered, and how long they took."""
        return {"steps_total": self._done, "compute_us_total": self._compute_us}
