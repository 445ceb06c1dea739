"""Which requests are to go from one replica to another. Pure functions of values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.actors.router.balance import tokens_max
from weft.actors.router.ledger import Routed

# Requests that are asked for at once: the router's links hold several times as many.
MOVES_MAX = 256

# Runners that have been away for so long may never come back: then suspects leave as well. Most
# models are loaded by then.
PATIENCE_NS = 120 * 10**9


def to_rescue(requests: Iterable[Routed], room: int) -> list[str]:
    """Return which requests of a replica without runners should go to others, by id.

    The oldest come first, which have begun or waited longest. ``room`` is for how many choices
    there is room at the others.
    """
    chosen: list[str] = []
    for routed in requests:
        if routed.stays:
            continue
        room -= routed.choices
        if room < 0 or len(chosen) == MOVES_MAX:
            break
        chosen.append(routed.request_id)
    return chosen


def to_share(requests: Sequence[Routed], tokens: int, least: int, slack: int) -> list[str]:
    """Return which requests of a replica should go to one that has less to do, by id.

    The two have ``tokens`` and ``least`` to do, and are in balance then, as ``choose`` sees it. The
    newest come first: they are the least likely to have begun.
    """
    chosen: list[str] = []
    for routed in reversed(requests):
        if tokens <= tokens_max(least, slack) or len(chosen) == MOVES_MAX:
            break
        if not routed.stays:
            tokens -= routed.tokens
            least += routed.tokens
            chosen.append(routed.request_id)
    return chosen
