"""What a step holds at most."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """Of any step. Memory that steps share is as large as they need at most."""

    rows: int
    tokens: int
    row_pages: int  # of one row
    adapters: int  # distinct ones
    rank: int  # of an adapter
    row_adapters: int  # of one row

    @property
    def entries(self) -> int:
        """Parts of rows: where its adapters begin, a row's chunk is cut into two."""
        return min(2 * self.rows, self.tokens)
