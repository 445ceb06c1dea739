"""Which beginnings of prompts each replica has computed lately, as far as the router remembers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

# A prompt is remembered by its beginnings of 64, 128, 256, ... tokens. So at least half of what
# two prompts share is seen, and looking costs as little as reading the prompt once.
SHORTEST_TOKENS = 64

# Beginnings remembered for a replica. They are a belief: its cache may have lost some.
REMEMBERED_MAX = 4096

# Of a prompt, how many tokens are looked at: what is longer has been recognised by then.
LOOKED_AT_TOKENS_MAX = 1 << 13


class Prefixes:
    """One replica's, the one used longest ago first.

    A beginning is known by a hash. If two are alike a request may go to a replica that has nothing
    of it: that costs time, and nothing else.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def tokens(self, marks: Sequence[int]) -> int:
        """Return how many of a prompt's tokens are known here; ``marks`` are those of it."""
        for place in range(len(marks) - 1, -1, -1):
            if marks[place] in self._known:
                return SHORTEST_TOKENS << place
        return 0

    def note(self, marks: Sequence[int]) -> None:
        """Remember a prompt that is sent here."""
        for mark in marks:
            self._known[mark] = None
            self._known.move_to_end(mark)
        while len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)


def marks(name_space: Hashable, prompt: list[int]) -> list[int]:
    """Return a hash of each beginning of a prompt, the shortest first.

    ``name_space`` is what prompts must have in common to share anything.
    """
    found: list[int] = []
    start, end = 0, SHORTEST_TOKENS
    mark = hash(name_space)
    while end <= min(len(prompt), LOOKED_AT_TOKENS_MAX):
        mark = hash((mark, *prompt[start:end]))
        found.append(mark)
        start, end = end, 2 * end
    return found
