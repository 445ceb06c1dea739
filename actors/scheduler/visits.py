"""Inspections on their way from runner to runner."""

from __future__ import annotations

from collections.abc import Sequence

from weft.runtime.messages import Inspection

# While the runners do not get on, further inspections pass them by.
VISITING_MAX = 16


class Visits:
    """Which inspections are with a runner: if it dies, they must go on without it."""

    def __init__(self, runners: Sequence[str]) -> None:
        """``runners`` are by rank; they are visited in this order."""
        self._runners = runners
        self._visiting: list[Inspection] = []

    def __len__(self) -> int:
        return len(self._visiting)

    def begin(self, inspection: Inspection) -> str | None:
        """Return the first runner that it visits; None: it passes all by."""
        if len(self._visiting) == VISITING_MAX:
            return None
        self._visiting.append(inspection)
        return self._runners[0]

    def knows(self, inspection: Inspection) -> bool:
        """Whether it is one that has not gone on without its runner."""
        return self._find(inspection) is not None

    def back(self, runner: str, inspection: Inspection) -> str | None:
        """Return the runner that it visits after this one; None: that was the last."""
        found = self._find(inspection)
        assert found is not None
        self._visiting.remove(found)
        following = self._runners.index(runner) + 1
        if following == len(self._runners):
            return None
        self._visiting.append(inspection)
        return self._runners[following]

    def end(self) -> list[Inspection]:
        """Return those that go on without the runners that are gone."""
        ended, self._visiting = self._visiting, []
        return ended

    def _find(self, inspection: Inspection) -> Inspection | None:
        key = (inspection.client, inspection.label)
        return next((each for each in self._visiting if (each.client, each.label) == key), None)
