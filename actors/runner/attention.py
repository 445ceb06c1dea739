"""How the rows of a step attend, planned on the host."""

from __future__ import annotations

from typing import Protocol

from weft.actors.runner.operations import Plan, Planner
from weft.actors.runner.rows import HostBatch
from weft.actors.runner.staging import Staging


class Attention(Protocol):
    """Makes plans, one for each step."""

    def plan(
        self, host: HostBatch, staging: Staging | None = None, *, is_graph: bool = False
    ) -> Plan:
        """Return the plan of a step, of which what the device reads lies in ``staging``.

        In a graph, every launch has the same shape whatever the step is.
        """
        ...

    def staged_bytes(self) -> int:
        """Return how much of the staging a step takes at most."""
        ...


class HostAttention:
    """For a device that is the host, or is told by copies of its own."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner

    def plan(
        self, host: HostBatch, staging: Staging | None = None, *, is_graph: bool = False
    ) -> Plan:
        """Return the plan of a step."""
        return self._planner(host.page_table, host.starts, host.positions)

    def staged_bytes(self) -> int:
        """Return that nothing is staged."""
        return 0
