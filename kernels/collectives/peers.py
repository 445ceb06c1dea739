"""The processes of a group, as one of them sees the others."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence

from weft.kernels.collectives.reference import RankLost

# A process closes its connections before it has ended for all to see: how long that may take.
ENDING_S = 1.0


class Peers:
    """Handles of the ranks' processes, which tell of an end even before it is noticed by others."""

    def __init__(self, pids: Sequence[int]) -> None:
        """``pids`` by rank. Raises ``RankLost`` if one has ended already."""
        self._pids = pids
        self.fds: list[int] = []
        for rank, pid in enumerate(pids):
            try:
                self.fds.append(os.pidfd_open(pid))
            except ProcessLookupError:
                raise self.ended(rank) from None

    def ended(self, rank: int) -> RankLost:
        """Return the error that says that a rank's process is gone."""
        return RankLost(f"rank {rank} (process {self._pids[rank]}) has ended")

    def late(self, rank: int, timeout_s: float) -> RankLost:
        """Return the error that says that a rank did not come."""
        return RankLost(
            f"rank {rank} (process {self._pids[rank]}) did not come within {timeout_s:g} s"
        )

    def first_ended(self) -> RankLost | None:
        """Return the error for a rank that has ended or is ending, None if all go on living."""
        ended, _, _ = select.select(self.fds, [], [], ENDING_S)
        return self.ended(self.fds.index(ended[0])) if ended else None
