"""Which request is thought to kill its runners."""

import pytest

from tests.actors.scheduler_harness import GREEDY, config
from weft.actors.scheduler.accounts import Payers
from weft.actors.scheduler.requests import Requests
from weft.actors.scheduler.suspects import DEATHS_MAX, Suspects
from weft.runtime.messages import Generate


@pytest.fixture
def suspects():
    suspects = Suspects()
    yield suspects
    suspects.check()


@pytest.fixture
def requests():
    return Requests(queued_max=100, payers=Payers(config()))


def running(requests, label, choices=1):
    """A request of which each choice has a token under way."""
    generate = Generate("0" * 32, "c", label, "base", [5, 6, 7], [], "", 9, choices, [2], GREEDY)
    request = requests.add(generate, 0)
    for sequence in request.sequences:
        sequence.in_flight = 1
    return request


def get_on(request, tokens=1):
    for sequence in request.sequences:
        sequence.tokens += [9] * tokens


def sequences(*found):
    return [sequence for request in found for sequence in request.sequences]


def test_after_one_death_nobody_is_alone(suspects, requests):
    a, b = running(requests, "a"), running(requests, "b")
    assert suspects.died(sequences(a, b)) is None
    assert len(suspects) == 2
    assert suspects.alone is None


def test_who_was_there_at_two_deaths_without_getting_on_is_alone_in_turn(suspects, requests):
    a, b, c = (running(requests, label) for label in "abc")
    suspects.died(sequences(a, b, c))
    get_on(b)
    suspects.clear()
    suspects.died(sequences(a, b, c))
    turns = []
    while (alone := suspects.alone) is not None:
        turns.append(alone)
        get_on(alone)
        suspects.clear()
    assert turns == [c, a]  # the last that came is first
    assert len(suspects) == 1  # b, of which nothing more is known


def test_a_request_gets_on_when_all_its_choices_that_were_computed_do(suspects, requests):
    a = running(requests, "a", choices=3)
    suspects.died(a.sequences[:2])
    a.sequences[0].tokens.append(9)
    suspects.clear()
    assert len(suspects) == 1
    a.sequences[1].tokens.append(9)
    suspects.clear()
    assert len(suspects) == 0


def test_what_is_under_way_must_come_again_before_a_request_is_trusted(suspects, requests):
    a = running(requests, "a")
    a.sequences[0].in_flight = 2
    suspects.died(sequences(a))
    get_on(a)
    suspects.clear()
    assert len(suspects) == 1
    get_on(a)
    suspects.clear()
    assert len(suspects) == 0


def test_who_is_alone_at_enough_deaths_is_guilty(suspects, requests):
    a, b = running(requests, "a"), running(requests, "b")
    suspects.died(sequences(a, b))
    suspects.died(sequences(a, b))
    found = [suspects.died(sequences(b)) for _ in range(DEATHS_MAX)]
    assert found == [None] * (DEATHS_MAX - 1) + [b]


def test_deaths_among_others_make_nobody_guilty(suspects, requests):
    a, b = running(requests, "a"), running(requests, "b")
    assert [suspects.died(sequences(a, b)) for _ in range(9)] == [None] * 9


def test_a_request_that_is_over_was_there_but_is_not_in_doubt(suspects, requests):
    a, b = running(requests, "a"), running(requests, "b")
    requests.end(a.sequences[0])
    for _ in range(DEATHS_MAX + 1):
        assert suspects.died(sequences(a, b)) is None  # b was not alone
    assert suspects.alone is b
    requests.end(b.sequences[0])
    suspects.clear()
    assert suspects.alone is None
