"""What the ranks of a group do together. Every rank calls the same, in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class RankLost(Exception):
    """Another rank has ended, or did not come in time; the message names it."""


class Collectives(Protocol):
    """One rank's end of its group. After ``RankLost``, which each may raise, it is of no use."""

    @property
    def rank(self) -> int:
        """Which of the group's processes this is, 0 to size - 1."""
        ...

    @property
    def size(self) -> int:
        """How many processes there are."""
        ...

    def all_reduce(self, x: Tensor) -> None:
        """Replace ``x`` by the sum of every rank's: the same bits on all of them."""
        ...

    def gather(self, x: Tensor) -> Tensor | None:
        """Return [rows, size * columns] on rank 0: each rank's [rows, columns] side by side.

        None on the others.
        """
        ...

    def broadcast(self, x: Tensor) -> None:
        """Replace ``x`` by that of rank 0."""
        ...


class Alone:
    """A group of one."""

    rank = 0
    size = 1

    def all_reduce(self, x: Tensor) -> None:
        """Leave the only summand as it is."""

    def gather(self, x: Tensor) -> Tensor:
        """Return the only part."""
        return x

    def broadcast(self, x: Tensor) -> None:
        """Leave what rank 0 has."""


def all_reduce(parts: Sequence[Tensor]) -> Tensor:
    """Return what each rank has after ``all_reduce`` of ``parts``, by rank."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def gather(parts: Sequence[Tensor]) -> Tensor:
    """Return what rank 0 gets from ``gather`` of ``parts``, by rank."""
    return torch.cat(list(parts), dim=1)
