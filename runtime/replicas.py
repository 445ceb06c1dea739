"""What several replicas of a model are called, and how each one counts apart from the others.

A replica is a scheduler with its own runners. With one of them the names carry no number for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Sequences and steps of replica r are numbered from r times this: more than one ever has (a step of
# a millisecond each is 34 years), and few enough that 64 replicas fit into a double's 53 bits.
NUMBERS = 1 << 40

# A scheduler's role, or a runner's, where there are several replicas.
_OF_SEVERAL = re.compile(r"(scheduler|runner(?=\d+_))(\d+)(?:_(\d+))?")


@dataclass(frozen=True)
class Replica:
    """One of ``count`` replicas."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it has no replica before it."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether it has no replica after it."""
        return self.index == self.count - 1

    @property
    def first_number(self) -> int:
        """From which on it numbers its sequences, and its steps for clients."""
        return self.index * NUMBERS

    @property
    def scheduler(self) -> str:
        """The role of its scheduler."""
        return f"scheduler{self.index if self.count > 1 else ''}"

    @property
    def door(self) -> str:
        """The role that its requests come from, and its answers about them go to."""
        return "router" if self.count > 1 else "tokenizer"

    def runner(self, rank: int) -> str:
        """The role of one of its runners."""
        return f"runner{self.index}_{rank}" if self.count > 1 else f"runner{rank}"


# The one, where there are no others.
ALONE = Replica()


def schedulers(count: int) -> list[str]:
    """Return the roles of the schedulers of ``count`` replicas, in order."""
    return [Replica(index, count).scheduler for index in range(count)]


def replica_of(role: str, count: int) -> Replica:
    """Return the replica, of ``count``, that a scheduler or a runner is of."""
    _, index = without_replica(role)
    return ALONE if index is None else Replica(index, count)


def without_replica(role: str) -> tuple[str, int | None]:
    """Return what a role is called where there is one replica, and the index of its replica.

    None: the role is of none, or of the only one.
    """
    match = _OF_SEVERAL.fullmatch(role)
    if match is None:
        return role, None
    kind, index, rank = match.groups(default="")
    return kind + rank, int(index)
