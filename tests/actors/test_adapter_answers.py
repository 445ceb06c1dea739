"""What schedulers add, one after the other, to a client's answer about adapters."""

import pytest

from tests.actors.scheduler_harness import Harness
from weft.actors.scheduler.answers import completed
from weft.runtime.messages import AdapterAnswer, AdapterReply, AdapterState, Refused

STATE = AdapterState("sql", 3, "x", "/sql", 8, 100, "host", False, 0, 0, 7)
UNREAD = AdapterState("new", 1, None, "/new", None, None, "disk", False, 0, 0, 7)


def add(reply, harness):
    scheduler = harness.scheduler
    return completed(
        reply,
        resident=scheduler._resident,
        requests=scheduler._requests,
        metrics=scheduler._metrics,
    )


def test_numbers_of_several_schedulers_are_added_up():
    first, second = Harness(), Harness()
    first.generate("done", [5, 6, 7], adapter="x", max_tokens=2)
    first.run()
    second.holds_acquires = True
    second.generate("queued", [5, 6, 7], adapter="x")
    reply = AdapterReply("c", AdapterAnswer("l", "listed", [STATE]))
    [state] = add(reply, second).answer.adapters
    assert (state.tier, state.requests, state.requests_total) == ("host", 1, 1)
    assert state.queue_s_mean is None
    [state] = add(add(reply, second), first).answer.adapters
    assert (state.tier, state.requests, state.requests_total) == ("device", 1, 2)
    assert sum(state.hits) == 1  # of the one that has begun
    assert state.queue_s_mean > 0


@pytest.mark.parametrize(
    "answer",
    [
        Refused("l", "model_not_found", "no adapter is named 'sql'"),
        AdapterAnswer("l", "unloaded", []),
        AdapterAnswer(
            "l", "listed", [AdapterState("new", 1, None, "/n", None, None, "disk", *[0] * 4)]
        ),
    ],
)
def test_what_names_no_content_is_passed_on_as_it_is(answer):
    reply = AdapterReply("c", answer)
    assert add(reply, Harness()) == reply
