from hypothesis import given
from hypothesis import strategies as st

from weft.actors.scheduler.limits import (
    Budget,
    concurrency_excess,
    rate_excess,
    refilled,
    wait_s,
)

SECOND_NS = 10**9
TOKENS = st.integers(1, 10**6)
TIMES_NS = st.integers(0, 10**12)


@given(st.floats(-1e6, 1e6), TOKENS, TIMES_NS, TIMES_NS)
def test_a_budget_grows_with_time_up_to_a_minutes_tokens(tokens, per_minute, then, passed):
    tokens = min(tokens, per_minute)
    budget = refilled(Budget(tokens, then), then + passed, per_minute)
    assert tokens <= budget.tokens <= per_minute
    assert budget.at_ns == then + passed
    if passed >= 60 * SECOND_NS and tokens >= 0:
        assert budget.tokens == per_minute


@given(TOKENS, st.lists(TIMES_NS, min_size=1, max_size=5))
def test_looking_often_gains_nothing(per_minute, times):
    start = Budget(-float(per_minute), 0)
    budget = start
    for now_ns in sorted(times):
        budget = refilled(budget, now_ns, per_minute)
    at_once = refilled(start, max(times), per_minute)
    assert abs(budget.tokens - at_once.tokens) < 1e-6 * per_minute + 1e-6


@given(st.floats(-1e6, 1e6), TOKENS, TOKENS)
def test_who_waits_as_long_as_was_said_may_come_in(tokens, wanted, per_minute):
    budget = Budget(min(tokens, per_minute), 0)
    seconds = wait_s(budget, wanted, per_minute)
    later = refilled(budget, int(seconds * SECOND_NS) + SECOND_NS // 1000, per_minute)
    assert wait_s(later, wanted, per_minute) == 0
    if seconds > 0.01:
        earlier = refilled(budget, int((seconds - 0.01) * SECOND_NS), per_minute)
        assert wait_s(earlier, wanted, per_minute) > 0


@given(st.lists(st.tuples(st.integers(0, 10 * SECOND_NS), st.integers(1, 300)), max_size=60))
def test_no_more_is_let_in_than_a_minutes_tokens_and_what_has_come_back(requests):
    per_minute, now_ns, spent = 600, 0, 0
    budget = Budget(float(per_minute), 0)
    for passed, tokens in requests:
        now_ns += passed
        budget = refilled(budget, now_ns, per_minute)
        if rate_excess(budget, tokens, per_minute) is None:
            budget = budget._replace(tokens=budget.tokens - tokens)
            spent += tokens
        assert spent <= per_minute * (1 + now_ns / (60 * SECOND_NS)) + 1e-6


@given(st.integers(0, 50), st.integers(1, 50), st.integers(1, 50))
def test_no_more_run_at_once_than_may(live, asked, limit):
    excess = concurrency_excess(live, asked, limit)
    assert (excess is None) == (live + asked <= limit)
    if excess is not None:
        assert (excess.retry_after_s is None) == (asked > limit)  # it would never help
    assert concurrency_excess(live, asked, None) is None


def test_a_refusal_says_what_is_used_up_and_for_how_long():
    excess = rate_excess(Budget(5.0, 0), 25, 60)
    assert excess.reason == "the limit of 60 tokens a minute is used up; try again in 20.0 s"
    assert excess.retry_after_s == 20.0


def test_what_is_longer_than_a_minutes_tokens_waits_for_all_of_them_and_is_let_in():
    assert rate_excess(Budget(60.0, 0), 500, 60) is None
    assert rate_excess(Budget(59.0, 0), 500, 60).retry_after_s == 1.0
