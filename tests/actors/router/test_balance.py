"""Which replica a request goes to, whatever their loads."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tests.actors.scheduler_harness import GREEDY
from weft.actors.router.balance import (
    OUTPUT_TOKENS_EXPECTED,
    Load,
    choose,
    expected_tokens,
    tokens_max,
)
from weft.runtime.messages import Generate

METHODS = ("adapter_aware", "total_tokens", "round_robin")
LOADS = st.lists(
    st.builds(
        Load,
        st.integers(0, 10**6),
        st.integers(0, 3),
        st.sampled_from([0, 64, 128]),
        st.integers(0, 100),
    ),
    min_size=1,
    max_size=8,
)


@st.composite
def cases(draw):
    """Loads, and which replicas may be chosen: at least one."""
    loads = draw(LOADS)
    allowed = draw(st.sets(st.integers(0, len(loads) - 1), min_size=1))
    return loads, allowed, draw(st.integers(0, 10**6)), draw(st.integers(0, 10**4))


@given(cases(), st.sampled_from(METHODS))
def test_only_who_is_allowed_is_chosen(case, method):
    loads, allowed, turn, slack = case
    assert choose(method, loads, allowed, turn=turn, slack=slack) in allowed


@given(cases())
def test_no_replica_is_chosen_for_its_adapters_that_is_out_of_balance(case):
    loads, allowed, turn, slack = case
    chosen = loads[choose("adapter_aware", loads, allowed, turn=turn, slack=slack)]
    least = min(loads[index].tokens for index in allowed)
    assert chosen.tokens <= tokens_max(least, slack)


@given(cases())
def test_nobody_in_balance_has_more_of_a_request_than_who_is_chosen(case):
    """Adapters count first, then what is computed of its prompt, then the load."""

    def rank(load):
        return load.missing, -load.cached, load.tokens

    loads, allowed, turn, slack = case
    chosen = loads[choose("adapter_aware", loads, allowed, turn=turn, slack=slack)]
    bound = tokens_max(min(loads[index].tokens for index in allowed), slack)
    for other in (loads[index] for index in allowed):
        if other.tokens <= bound:
            assert rank(chosen) <= rank(other)


@given(cases())
def test_the_least_loaded_gets_it_where_tokens_alone_count(case):
    loads, allowed, turn, slack = case
    chosen = choose("total_tokens", loads, allowed, turn=turn, slack=slack)
    assert loads[chosen].tokens == min(loads[index].tokens for index in allowed)


@given(st.integers(1, 8), st.integers(0, 1000), st.sampled_from(METHODS))
def test_replicas_that_are_alike_take_turns(count, start, method):
    loads = [Load(100, 1, 0, 5)] * count
    turns = range(start, start + 3 * count)
    chosen = Counter(choose(method, loads, range(count), turn=t, slack=64) for t in turns)
    assert chosen == dict.fromkeys(range(count), 3)


@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(0, 20)), min_size=1, max_size=200),
    st.integers(2, 5),
)
def test_no_replica_runs_away_from_the_least_loaded(requests, count):
    """Requests of any adapters come and none ends: the bound holds but for one request's tokens."""
    slack = 512
    tokens, homes = [0] * count, [set() for _ in range(count)]
    for turn, (size, adapter) in enumerate(requests):
        loads = [
            Load(taken, int(adapter not in home), 0, len(home))
            for taken, home in zip(tokens, homes, strict=True)
        ]
        index = choose("adapter_aware", loads, range(count), turn=turn, slack=slack)
        least = min(tokens)
        tokens[index] += size
        homes[index].add(adapter)
        assert tokens[index] <= tokens_max(least, slack) + size


def test_an_answer_counts_with_what_it_will_take_at_most_and_no_more_than_is_usual():
    def request(max_tokens, choices):
        return Generate(
            "0" * 32, "c", "a", "base", [5] * 10, [], "", max_tokens, choices, [2], GREEDY
        )

    assert expected_tokens(request(7, 1)) == 17
    assert expected_tokens(request(7, 3)) == 31
    assert expected_tokens(request(100_000, 2)) == 10 + 2 * OUTPUT_TOKENS_EXPECTED
