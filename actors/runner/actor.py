"""The runner actor: executes steps in the order in which they come.

Of the runners that share a model, every one executes every step, and rank 0 answers. A step is
launched before the one before it has been answered: while the device computes that one, its host
prepares this one.
"""

from __future__ import annotations

from collections import deque
from typing import assert_never

import msgspec

from weft.actors.runner.engine import STEPS_MAX, Engine, Launched
from weft.runtime.actor import Send, Turn
from weft.runtime.messages import Inspection, LoadMetrics, RunnerInbox, Step
from weft.runtime.replicas import ALONE


class Runner:
    """Says that it is ready, then answers each step. Makes no decision."""

    def __init__(
        self, engine: Engine, *, role: str, scheduler: str = ALONE.scheduler, epoch: int = 1
    ) -> None:
        """``epoch`` counts the lives of the role."""
        self._scheduler = scheduler
        self._engine = engine
        self._role = role
        self._ready = msgspec.structs.replace(engine.ready(), epoch=epoch)
        self._answers = self._ready.rank == 0
        self._is_announced = False
        self._steps: deque[Step] = deque()
        self._launched: deque[Launched] = deque()

    @property
    def is_idle(self) -> bool:
        """Whether every step has been answered."""
        return not self._steps and not self._launched

    def drain(self) -> None:
        """Nothing to do: only the scheduler sends work."""

    def lost(self, peer: str, now_ns: int) -> list[Send]:
        """Nobody but the scheduler is a peer."""
        return []

    def receive(self, source: str, message: RunnerInbox, now_ns: int) -> list[Send]:
        """Take in one message."""
        match message:
            case Step():
                self._steps.append(message)
                return []
            case Inspection():
                return [Send(self._scheduler, self._inspect(message))]
            case _:
                assert_never(message)

    def advance(self, turn: Turn) -> list[Send] | None:
        """Answer the oldest step if it is done; launch the next one while it is not."""
        if not self._is_announced:
            self._is_announced = True
            return [Send(self._scheduler, self._ready)]
        while True:
            if self._launched and self._launched[0].is_done:
                done = self._launched.popleft().collect()
                if self._answers:
                    return [Send(self._scheduler, done)]
            elif self._steps and len(self._launched) < STEPS_MAX:
                self._launched.append(self._engine.launch(self._steps.popleft()))
            else:
                return None if self._launched else []

    def check(self) -> None:
        """Assert the invariants of the engine."""
        self._engine.counters()

    def _inspect(self, inspection: Inspection) -> Inspection:
        loads = self._engine.loads
        told = LoadMetrics(self._role, "device", list(loads.counts), loads.sum_s)
        return msgspec.structs.replace(
            inspection,
            sections={**inspection.sections, self._role: self._engine.counters()},
            loads=[*inspection.loads, told],
        )
