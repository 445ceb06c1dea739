"""In which order waiting sequences are looked at. Pure functions of values: no clock, no state.

Across tenants it is the virtual token counter of Sheng et al. 2024 ("Fairness in Serving Large
Language Models", arXiv 2401.00588, algorithm 2): a tenant's counter is the service that it has
had, in weighted tokens, and of those who wait the one with the least comes next. Two tenants that
both wait all the time are then never further apart than ``service_gap_max``. Within a tenant it is
the order of arrival, which priorities shift.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

# What a token costs, as in the paper: one that is computed together with others of its prompt, and
# one that takes a step of its own.
INPUT_COST = 1.0
OUTPUT_COST = 2.0

# What one step of priority is worth in time of arrival: whoever waits grows more urgent at this
# rate, so that the least urgent is passed by the most urgent for 2 PRIORITY_MAX steps, 100 s.
AGEING_NS = 500_000_000


class Lane(NamedTuple):
    """A tenant's waiting sequences, the first first."""

    counter: float
    price: float  # what a token of a prompt adds to the counter: its cost, divided by the weight
    sequences: Iterable[int]


def urgency_ns(arrived_ns: int, priority: int) -> int:
    """Return the key that orders a tenant's sequences, the least first.

    As in vLLM a lower priority is served earlier. Priorities and ages grow at the same rate for
    everybody, so the order of two sequences never changes while they wait.
    """
    return arrived_ns + priority * AGEING_NS


def lifted(counter: float, others: Iterable[float], last_left: float) -> float:
    """Return the counter of a tenant that begins to wait.

    ``others`` are those of the tenants that wait already, ``last_left`` is that of the one who
    stopped waiting last. Time in which a tenant asked for nothing earns it no claim on later.
    """
    return max(counter, min(others, default=last_left))


def merge(lanes: Iterable[Lane], tokens: Callable[[int], float]) -> Iterator[int]:
    """Yield every sequence once, each time of the lane whose counter is the least.

    ``lanes`` come in the order of their counters; a lane is looked at when it is its turn.
    ``tokens`` is asked about a sequence when the next one is wanted: how many of its prompt are
    computed, now that it starts, or would be, if it was passed over. So a tenant whose sequences
    cannot start does not keep the others from being looked at.
    """
    closed = iter(lanes)
    following = next(closed, None)
    heap: list[tuple[float, int, float, Iterator[int]]] = []
    place = 0
    while heap or following:
        if following and not (heap and heap[0][0] <= following.counter):
            entry = (following.counter, place, following.price, iter(following.sequences))
            heapq.heappush(heap, entry)
            place += 1
            following = next(closed, None)
        counter, at, price, sequences = heap[0]
        number = next(sequences, None)
        if number is None:
            heapq.heappop(heap)
            continue
        yield number
        heapq.heapreplace(heap, (counter + tokens(number) * price, at, price, sequences))


def service_gap_max(*, input_tokens_max: int, batch_tokens_max: int) -> float:
    """Return by how much the service of two tenants that both wait may differ, at most.

    Theorem 4.4 of the paper: of a request's prompt there are at most ``input_tokens_max`` tokens,
    in a running batch at most ``batch_tokens_max``. It is for any span of time, and for services
    divided by weights if weights differ.
    """
    return 2 * max(INPUT_COST * input_tokens_max, OUTPUT_COST * batch_tokens_max)


def queue_room(queued_max: int, waiting: int, own: int, tenants: int) -> int:
    """Return how many more sequences of a tenant may wait.

    ``waiting`` sequences wait already, ``own`` of them the tenant's; ``tenants`` wait, itself
    included. An eighth of the queue is kept for those who have less than an equal share in it, so
    that whoever floods it fills seven eighths, and somebody who comes later finds room.
    """
    room = queued_max - waiting
    share = queued_max // max(2, tenants)
    return min(room, max(room - queued_max // 8, share - own))
