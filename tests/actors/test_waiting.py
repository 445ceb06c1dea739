import pytest

from tests.actors.scheduler_harness import GREEDY, config, uses
from weft.actors.scheduler.accounts import Payers
from weft.actors.scheduler.requests import Requests
from weft.actors.scheduler.waiting import Waiting
from weft.runtime.messages import Generate


@pytest.fixture
def requests():
    requests = Requests(queued_max=3, payers=Payers(config()))
    yield requests
    requests.check()


@pytest.fixture
def waiting():
    waiting = Waiting()
    yield waiting
    waiting.check()


def generate(label="a", *, client="c", adapter=None, choices=1):
    adapters = uses(adapter)
    return Generate("0" * 32, client, label, "m", [5, 6], adapters, "", 9, choices, [], GREEDY)


def in_order(waiting):
    return list(waiting.in_order(lambda sequence: 1.0))


def add(requests, label, **options):
    return requests.add(generate(label, **options), 0).sequences


def test_choices_are_numbered_in_order_and_the_last_to_end_takes_the_request_along(requests):
    first, second = add(requests, "a", choices=2)
    [third] = add(requests, "b")
    assert [s.number for s in (first, second, third)] == [1, 2, 3]
    requests.end(first)
    assert requests.find("c", "a") is second.request
    assert requests.sequence(1) is None
    requests.end(second)
    assert requests.find("c", "a") is None
    assert (len(requests), requests.sequence_count) == (1, 1)


def test_a_label_is_refused_to_its_client_while_it_is_in_use(requests):
    [sequence] = add(requests, "a")
    assert requests.refusal(generate("a"), 0, room=3).code == "duplicate_label"
    assert requests.refusal(generate("a", client="d"), 0, room=3) is None
    requests.end(sequence)
    assert requests.refusal(generate("a"), 0, room=3) is None


@pytest.mark.parametrize(
    ("choices", "waiting", "code"), [(3, 0, None), (2, 2, "queue_full"), (4, 0, "invalid_value")]
)
def test_no_more_may_wait_than_is_configured(requests, choices, waiting, code):
    refused = requests.refusal(generate(choices=choices), 0, room=3 - waiting)
    assert (refused and refused.code) == code


def test_the_queue_keeps_its_order_but_for_those_that_are_put_first(requests, waiting):
    a, b, c = (add(requests, label)[0] for label in "abc")
    waiting.append(a)
    waiting.append(b)
    waiting.prepend(c)
    assert in_order(waiting) == [c, a, b]
    waiting.move_to_front(b.number)
    assert in_order(waiting) == [b, c, a]
    waiting.remove(c)
    assert in_order(waiting) == [b, a]
    assert not waiting.has(c.number)


def test_an_adapter_is_waited_for_as_long_as_one_sequence_needs_it(requests, waiting):
    first, second = add(requests, "a", adapter="x", choices=2)
    for sequence in (first, second, *add(requests, "b")):
        waiting.append(sequence)
    waiting.remove(first)
    assert waiting.adapters == {"x"}
    waiting.remove(second)
    assert not waiting.adapters


def test_who_has_several_adapters_waits_for_each_of_them(requests, waiting):
    [both] = add(requests, "a", adapter={"x": 1.0, "y": 0.5})
    [one] = add(requests, "b", adapter="y")
    [base] = add(requests, "c")
    for sequence in (both, one, base):
        waiting.append(sequence)
    assert waiting.adapters == {"x", "y"}
    assert list(waiting.all_of("y")) == [both, one]

    def usable(*adapters):
        return list(waiting.in_order(lambda sequence: 1.0, adapters=frozenset(adapters)))

    assert usable("x", "z") == [base]
    assert usable("y") == [one, base]
    assert usable("x", "y") == [both, one, base]
    waiting.move_to_front(both.number)
    assert usable("y") == [one, base]
    waiting.remove(both)
    assert waiting.adapters == {"y"}
