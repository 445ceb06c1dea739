"""The order among tenants and within one, for any tenants, lengths and arrivals."""

from collections import Counter
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from weft.actors.scheduler.fair import (
    AGEING_NS,
    INPUT_COST,
    OUTPUT_COST,
    Lane,
    lifted,
    merge,
    queue_room,
    service_gap_max,
    urgency_ns,
)
from weft.runtime.messages import PRIORITY_MAX

COUNTERS = st.floats(0, 1e9)
PRIORITIES = st.integers(-PRIORITY_MAX, PRIORITY_MAX)
TIMES_NS = st.integers(0, 10**13)


@st.composite
def lanes(draw):
    """Lanes of consecutive numbers, and what each number costs."""
    numbers = count()
    made = [
        Lane(draw(COUNTERS), 1 / draw(st.floats(0.1, 10)), [next(numbers) for _ in range(length)])
        for length in draw(st.lists(st.integers(0, 8), max_size=6))
    ]
    made.sort(key=lambda lane: lane.counter)
    total = next(numbers)
    costs = draw(st.lists(st.floats(0, 1e6), min_size=total, max_size=total))
    return made, costs


@given(lanes())
def test_everyone_is_looked_at_once_and_each_lane_in_its_order(drawn):
    made, costs = drawn
    order = list(merge(made, costs.__getitem__))
    assert sorted(order) == list(range(len(costs)))
    for lane in made:
        assert [number for number in order if number in set(lane.sequences)] == lane.sequences


@given(lanes())
def test_the_next_is_always_of_a_lane_whose_counter_is_the_least(drawn):
    made, costs = drawn
    counters = {index: lane.counter for index, lane in enumerate(made)}
    left = {index: list(lane.sequences) for index, lane in enumerate(made)}
    for number in merge(made, costs.__getitem__):
        waiting = [index for index in left if left[index]]
        [index] = [index for index in waiting if left[index][0] == number]
        assert counters[index] == min(counters[other] for other in waiting)
        left[index].pop(0)
        counters[index] += costs[number] * made[index].price


def test_what_was_passed_over_is_asked_its_cost_only_when_the_next_is_wanted():
    asked = []
    order = merge([Lane(0.0, 1.0, [1, 2])], lambda number: asked.append(number) or 1.0)
    assert next(order) == 1
    assert asked == []
    assert next(order) == 2
    assert asked == [1]


@given(COUNTERS, st.lists(COUNTERS), COUNTERS)
def test_whoever_begins_to_wait_is_lifted_to_those_who_do_and_never_lowered(own, others, last):
    result = lifted(own, others, last)
    assert result >= own
    assert result >= (min(others) if others else last)
    assert result in (own, *others, last)
    # Nobody who waits already is overtaken by time in which nothing was asked for.
    assert not others or result <= max(own, *others)


@given(TIMES_NS, PRIORITIES, TIMES_NS, PRIORITIES)
def test_a_lower_priority_is_earlier_and_the_wait_for_others_is_bounded(first, p, second, q):
    if first == second:
        assert (urgency_ns(first, p) < urgency_ns(second, q)) == (p < q)
    if p == q:
        assert (urgency_ns(first, p) < urgency_ns(second, q)) == (first < second)
    if second - first > 2 * PRIORITY_MAX * AGEING_NS:
        assert urgency_ns(first, p) < urgency_ns(second, q)


@given(st.integers(1, 2000), st.integers(1, 20), st.data())
def test_a_queue_is_never_overfull_and_keeps_room_for_who_has_less(queued_max, tenants, data):
    waiting = data.draw(st.integers(0, queued_max))
    own = data.draw(st.integers(0, waiting))
    room = queue_room(queued_max, waiting, own, tenants)
    assert room <= queued_max - waiting
    if own < queued_max // max(2, tenants) and waiting < queued_max:
        assert room > 0
    if waiting < queued_max - queued_max // 8:
        assert room > 0


def test_one_tenant_may_fill_seven_eighths_of_the_queue():
    assert queue_room(1024, 0, 0, 1) == 896
    assert queue_room(1024, 896, 896, 1) == 0
    assert queue_room(4, 0, 0, 1) == 4
    assert queue_room(1024, 896, 895, 2) == 0
    assert queue_room(1024, 895, 894, 2) == 1
    assert queue_room(1024, 896, 0, 2) == 128


@st.composite
def backlogs(draw):
    """Two tenants' weights and queues of (prompt tokens, answer tokens), and rows."""
    request = st.tuples(st.integers(1, 60), st.integers(1, 40))
    queues = [draw(st.lists(request, min_size=30, max_size=60)) for _ in range(2)]
    weights = [draw(st.sampled_from((1.0, 2.0, 0.5))) for _ in range(2)]
    return weights, queues, draw(st.integers(1, 8))


@given(backlogs())
def test_two_tenants_who_both_wait_stay_within_the_papers_bound(drawn):
    """The whole algorithm over a batch of so many rows, each of which decodes one token a step."""
    weights, queues, rows = drawn
    input_max = max(prompt for queue in queues for prompt, _ in queue)
    batch_max = rows * max(prompt + answer for queue in queues for prompt, answer in queue)
    bound = service_gap_max(input_tokens_max=input_max, batch_tokens_max=batch_max)
    places, counters, gaps = [0, 0], [0.0, 0.0], [0.0]
    running = []  # [tenant, answer tokens left]
    while all(place < len(queue) for place, queue in zip(places, queues, strict=True)):
        made = []
        for who, queue in enumerate(queues):
            sequences = range(who * 1000 + places[who], who * 1000 + len(queue))
            made.append(Lane(counters[who], INPUT_COST / weights[who], sequences))
        made.sort(key=lambda lane: lane.counter)
        order = merge(made, lambda n: queues[n // 1000][n % 1000][0])
        for _, number in zip(range(rows - len(running)), order, strict=False):
            who, place = divmod(number, 1000)
            prompt, answer = queues[who][place]
            places[who] += 1
            counters[who] += INPUT_COST * prompt / weights[who]
            running.append([who, answer])
        for row in running:
            counters[row[0]] += OUTPUT_COST / weights[row[0]]
            row[1] -= 1
        running = [row for row in running if row[1]]
        gaps.append(counters[0] - counters[1])
    # Of services divided by weights; the least weight makes a token's cost the most.
    assert max(gaps) - min(gaps) <= bound / min(weights) + 1e-6


def test_the_bound_is_the_papers():
    assert service_gap_max(input_tokens_max=1000, batch_tokens_max=100) == 2000
    assert service_gap_max(input_tokens_max=100, batch_tokens_max=1000) == 4000


def test_equal_tenants_take_turns():
    two = [Lane(0.0, 1.0, [1, 2, 3]), Lane(0.0, 1.0, [11, 12, 13])]
    assert list(merge(two, lambda number: 5.0)) == [1, 11, 2, 12, 3, 13]


def test_weights_divide_the_turns():
    two = [Lane(0.0, 1 / 3, range(300)), Lane(0.0, 1.0, range(1000, 1300))]
    first = [number for _, number in zip(range(200), merge(two, lambda number: 9.0), strict=False)]
    assert Counter(number < 1000 for number in first) == {True: 150, False: 50}
