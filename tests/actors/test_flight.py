"""Steps that the runners have been sent: their numbers, their order, and what is lost with them."""

import pytest

from tests.actors.scheduler_harness import GREEDY, config
from weft.actors.scheduler.accounts import Payers
from weft.actors.scheduler.draft import Composed
from weft.actors.scheduler.flight import STEPS_IN_FLIGHT, InFlight
from weft.actors.scheduler.requests import Requests
from weft.runtime.messages import Generate, Step, StepDone


@pytest.fixture
def requests():
    registry = Requests(queued_max=100, payers=Payers(config()))

    def add(label):
        prompt = [5, 6, 7]
        return registry.add(
            Generate("0" * 32, "c", label, "base", prompt, [], "", 9, 1, [2], GREEDY), 0
        )

    return [add("a"), add("b")]


def composed(number, *requests):
    return Composed(Step(number), [r.sequences[0] for r in requests], [], [])


def test_steps_are_answered_in_the_order_in_which_they_were_sent(requests):
    flight = InFlight()
    steps = [composed(0, requests[0]), composed(1, *requests)]
    for step in steps:
        assert not flight.is_full
        flight.send(step)
    assert flight.is_full
    assert len(flight) == STEPS_IN_FLIGHT
    assert flight.finish(StepDone(0, [9], compute_us=3)) is steps[0]
    assert flight.finish(StepDone(1, [9, 8], compute_us=4)) is steps[1]
    assert (flight.sent, flight.first) == (2, 2)
    assert flight.counters() == {"steps_total": 2, "compute_us_total": 7}


def test_numbers_go_on_after_steps_that_are_lost(requests):
    flight = InFlight()
    flight.send(composed(0, requests[0]))
    assert flight.first == 0
    flight.lose()
    assert (flight.sent, flight.first, len(flight)) == (1, 1, 0)
    flight.send(composed(1, requests[0]))
    assert flight.counters()["steps_total"] == 0


@pytest.mark.parametrize("done", [StepDone(1, [9]), StepDone(0, [])])
def test_an_answer_to_another_step_is_a_bug(requests, done):
    flight = InFlight()
    flight.send(composed(0, requests[0]))
    with pytest.raises(AssertionError):
        flight.finish(done)


def test_a_request_is_alone_when_no_step_does_anything_for_another(requests):
    flight = InFlight()
    first, second = requests
    flight.send(composed(0, first))
    assert flight.has_only(first)
    flight.send(composed(1, first, second))
    assert not flight.has_only(first)
    assert flight.sequences == {first.sequences[0], second.sequences[0]}
