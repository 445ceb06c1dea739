"""What the router remembers of prompts."""

import random

from hypothesis import given
from hypothesis import strategies as st

from weft.actors.router.prefixes import REMEMBERED_MAX, SHORTEST_TOKENS, Prefixes, marks

BASE = ("",)


@given(st.integers(0, 3000), st.integers(0, 500), st.integers(0, 500))
def test_at_least_half_of_what_two_prompts_share_is_seen_and_never_more(shared, one, other):
    rng = random.Random(shared)
    common = [rng.randrange(1000) for _ in range(shared)]
    known = Prefixes()
    known.note(marks(BASE, [*common, 1001, *range(one)]))
    found = known.tokens(marks(BASE, [*common, 1002, *range(other)]))
    assert found <= shared
    assert found > shared / 2 or shared < SHORTEST_TOKENS


def test_the_same_prompt_of_another_adapter_or_salt_is_unknown():
    prompt = list(range(200))
    known = Prefixes()
    known.note(marks(("", "d1"), prompt))
    assert known.tokens(marks(("", "d1"), prompt)) == 128
    for name_space in (BASE, ("", "d2"), ("salt", "d1")):
        assert known.tokens(marks(name_space, prompt)) == 0


def test_what_was_used_longest_ago_is_forgotten_first():
    known = Prefixes()
    prompts = [[number] * SHORTEST_TOKENS for number in range(REMEMBERED_MAX + 1)]
    for prompt in prompts[:-1]:
        known.note(marks(BASE, prompt))
    known.note(marks(BASE, prompts[0]))
    known.note(marks(BASE, prompts[-1]))
    assert len(known) == REMEMBERED_MAX
    assert known.tokens(marks(BASE, prompts[1])) == 0
    assert known.tokens(marks(BASE, prompts[0])) == SHORTEST_TOKENS


def test_a_prompt_of_any_length_has_few_marks():
    assert marks(BASE, list(range(SHORTEST_TOKENS - 1))) == []
    assert len(marks(BASE, list(range(1_000_000)))) == 8
