"""What a scheduler adds to the answer of a client that asked about adapters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Set

import msgspec

from weft.actors.scheduler.metrics import Metrics, mean, together
from weft.actors.scheduler.sequence import Request
from weft.runtime.messages import AdapterReply, AdapterState, Refused


def completed(
    reply: AdapterReply, *, resident: Set[str], requests: Iterable[Request], metrics: Metrics
) -> AdapterReply:
    """Return an answer with what is known here of each adapter added to what others knew.

    ``resident`` are on the device now; ``requests`` are those that are not over.
    """
    answer = reply.answer
    if isinstance(answer, Refused) or not answer.adapters:
        return reply
    live = Counter(adapter for request in requests for adapter in request.adapters)

    def complete(state: AdapterState) -> AdapterState:
        if state.digest is None:
            return state
        counters = metrics.of(state.digest)
        return msgspec.structs.replace(
            state,
            tier="device" if state.digest in resident else state.tier,
            requests=state.requests + live[state.digest],
            requests_total=state.requests_total + counters.requests,
            hits=together(state.hits, counters.hits),
            queue_s_mean=mean(
                (state.queue_s_mean, state.requests_total),
                (counters.queue.mean_s, counters.requests),
            ),
        )

    states = list(map(complete, answer.adapters))
    return AdapterReply(reply.client, msgspec.structs.replace(answer, adapters=states))
