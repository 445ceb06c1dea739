import random

import pytest

from weft.actors.scheduler.pages import Pages

PAGES = 32
SIZE = 4


@pytest.fixture
def pages():
    pages = Pages(PAGES, SIZE, caching=True)
    yield pages
    pages.check()  # whatever the test did, no page is lost or shared wrongly


def run(pages, tokens, *, adapter=None, salt=""):
    """Compute and end a sequence: returns how many pages it found."""
    found = pages.find(salt, adapter, tokens)
    holding = pages.hold(salt, adapter, found, len(tokens))
    count = len(holding.nodes)
    pages.release(holding, tokens, len(tokens))
    return count


def test_full_pages_of_the_same_tokens_are_found_again(pages):
    tokens = list(range(11))
    assert run(pages, tokens) == 0
    assert run(pages, tokens) == 2
    assert run(pages, [*range(6), 99, 7, 8]) == 1


def test_the_last_token_is_always_computed(pages):
    assert run(pages, list(range(8))) == 0
    assert run(pages, list(range(8))) == 1


@pytest.mark.parametrize("other", [{"adapter": "y"}, {"adapter": None}, {"salt": "tenant"}])
def test_nothing_is_shared_across_adapters_or_salts(pages, other):
    tokens = list(range(20))
    run(pages, tokens, adapter="x")
    assert run(pages, tokens, **({"adapter": "x"} | other)) == 0
    assert run(pages, tokens, adapter="x") == 4


def test_an_equal_page_stays_private_while_the_sequence_runs(pages):
    tokens = list(range(9))
    first = pages.hold("", None, [], 9)
    second = pages.hold("", None, [], 9)
    before = second.pages
    pages.share(first, tokens, 9)
    pages.share(second, tokens, 9)
    assert second.pages == before
    pages.release(first, tokens, 9)
    pages.release(second, tokens, 9)
    assert pages.available == PAGES
    assert pages.cached == 2


def test_the_least_recently_used_page_goes_first(pages):
    run(pages, [1] * 9)
    run(pages, [2] * 9)
    run(pages, [1] * 9)
    holding = pages.hold("", None, [], (PAGES - 3) * SIZE)
    assert len(pages.find("", None, [2] * 9)) == 1  # its last page is gone
    assert len(pages.find("", None, [1] * 9)) == 2
    pages.release(holding, [], 0)


def test_without_caching_nothing_stays():
    pages = Pages(PAGES, SIZE, caching=False)
    assert run(pages, list(range(20))) == 0
    assert run(pages, list(range(20))) == 0
    assert pages.free == PAGES
    pages.check()


def test_taking_more_than_is_available_is_a_bug(pages):
    with pytest.raises(AssertionError, match="33 of 32 available pages"):
        pages.hold("", None, [], 33 * SIZE)
    pages._holdings.clear()


def test_releasing_twice_is_a_bug(pages):
    holding = pages.hold("", None, [], 4)
    pages.release(holding, [], 0)
    with pytest.raises(KeyError):
        pages.release(holding, [], 0)


@pytest.mark.parametrize("seed", range(4))
def test_every_page_comes_back_after_a_long_random_run(seed):
    pages = Pages(PAGES, SIZE, caching=True)
    rng = random.Random(seed)
    live = []
    for _ in range(3000):
        tokens = [rng.randint(0, 1) for _ in range(rng.randint(1, 30))]
        adapter = rng.choice([None, "x"])
        found = pages.find("", adapter, tokens)
        if pages.cost(found, len(tokens)) <= pages.available and rng.random() < 0.5:
            available = pages.available
            cost = pages.cost(found, len(tokens))
            live.append((pages.hold("", adapter, found, len(tokens)), tokens))
            assert pages.available == available - cost
        elif live:
            holding, tokens = live.pop(rng.randrange(len(live)))
            if rng.random() < 0.3 and pages.available:
                tokens += [rng.randint(0, 1)] * SIZE
                pages.grow(holding, 1)
            if rng.random() < 0.5:
                pages.share(holding, tokens, rng.randint(0, len(tokens)))
            computed = rng.randint(len(holding.nodes) * SIZE, len(tokens))
            pages.release(holding, tokens, computed)
        if rng.random() < 0.1:
            pages.check()
    for holding, tokens in live:
        pages.release(holding, tokens, len(tokens))
    pages.check()
    assert pages.available == PAGES
