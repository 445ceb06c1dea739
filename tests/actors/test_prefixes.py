import pytest

from weft.actors.scheduler.pages import Pages
from weft.actors.scheduler.prefixes import Identity, PrefixCache

PAGES = 32
SIZE = 4
BASE = Identity("", ())


@pytest.fixture
def pages():
    return Pages(PAGES)


@pytest.fixture
def cache(pages):
    cache = PrefixCache(pages, SIZE, caching=True)
    yield cache
    cache.check()  # whatever the test did, no page is lost or shared wrongly
    pages.check(cache.owned())


def run(cache, tokens, *, adapter=None, salt="", start=0):
    """Compute and end a sequence: returns how many pages it found."""
    uses = tuple(adapter.items()) if isinstance(adapter, dict) else ((adapter, 1.0),)
    identity = Identity(salt, uses if adapter else (), start)
    found = cache.find(identity, tokens)
    holding = cache.hold(identity, found, len(tokens))
    count = len(holding.nodes)
    cache.release(holding, tokens, len(tokens))
    return count


def test_full_pages_of_the_same_tokens_are_found_again(cache):
    tokens = list(range(11))
    assert run(cache, tokens) == 0
    assert run(cache, tokens) == 2
    assert run(cache, [*range(6), 99, 7, 8]) == 1


def test_the_last_token_is_always_computed(cache):
    assert run(cache, list(range(8))) == 0
    assert run(cache, list(range(8))) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"adapter": "y"},
        {"adapter": None},
        {"adapter": {"x": 0.5}},
        {"adapter": {"w": 1.0, "x": 1.0}},
        {"salt": "tenant"},
    ],
)
def test_nothing_is_shared_across_adapters_or_salts(cache, other):
    tokens = list(range(20))
    run(cache, tokens, adapter="x")
    assert run(cache, tokens, **({"adapter": "x"} | other)) == 0
    assert run(cache, tokens, adapter="x") == 4


def test_what_any_of_its_adapters_computed_is_dropped_with_it(cache, pages):
    tokens = list(range(9))
    for adapter in ("x", "y", {"x": 1.0, "y": 0.5}, {"y": 0.5, "z": 1.0}, None):
        run(cache, tokens, adapter=adapter)
    cache.drop("y")
    assert run(cache, tokens, adapter="x") == 2
    assert run(cache, tokens) == 2
    assert pages.idle == 4
    assert run(cache, tokens, adapter={"x": 1.0, "y": 0.5}) == 0


def test_an_activated_adapter_shares_what_lies_before_it_with_the_base(cache):
    tokens = list(range(20))
    assert run(cache, tokens) == 0
    assert run(cache, tokens, adapter="x", start=9) == 2  # the third page is not the base's alone
    assert run(cache, tokens, adapter="y", start=9) == 2
    assert run(cache, tokens, adapter="x", start=9) == 4
    assert run(cache, tokens, adapter="x", start=8) == 2
    assert run(cache, tokens, adapter={"x": 0.5}, start=9) == 2
    assert run(cache, tokens, adapter="x") == 0
    assert run(cache, tokens) == 4


def test_the_base_uses_what_an_activated_adapter_had_computed_before_it(cache):
    tokens = list(range(20))
    assert run(cache, tokens, adapter="x", start=13) == 0
    assert run(cache, tokens) == 3
    assert run(cache, tokens, adapter="y", start=19) == 4


def test_where_an_activated_adapter_begins_is_part_of_what_its_pages_are(cache):
    """One page, in which it may have been invoked twice."""
    tokens = [5, 6, 5, 6, 7, 7, 7, 7, 1]
    assert run(cache, tokens, adapter="x", start=0) == 0
    assert run(cache, tokens, adapter="x", start=2) == 0
    assert run(cache, tokens, adapter="x", start=2) == 2


def test_dropping_an_activated_adapter_leaves_the_base_what_is_its_own(cache, pages):
    tokens = list(range(20))
    run(cache, tokens, adapter="x", start=9)
    run(cache, tokens, adapter="y", start=9)
    cache.drop("x")
    assert pages.idle == 2 + 3
    assert run(cache, tokens, adapter="x", start=9) == 2
    assert run(cache, tokens, adapter="y", start=9) == 4


def test_an_equal_page_stays_private_while_the_sequence_runs(cache, pages):
    tokens = list(range(9))
    first = cache.hold(BASE, [], 9)
    second = cache.hold(BASE, [], 9)
    before = second.pages
    cache.share(first, tokens, 9)
    cache.share(second, tokens, 9)
    assert second.pages == before
    cache.release(first, tokens, 9)
    cache.release(second, tokens, 9)
    assert pages.available == PAGES
    assert pages.idle == 2


def test_the_least_recently_used_page_goes_first(cache):
    run(cache, [1] * 9)
    run(cache, [2] * 9)
    run(cache, [1] * 9)
    holding = cache.hold(BASE, [], (PAGES - 3) * SIZE)
    assert len(cache.find(BASE, [2] * 9)) == 1  # its last page is gone
    assert len(cache.find(BASE, [1] * 9)) == 2
    cache.release(holding, [], 0)


def test_without_caching_nothing_stays(pages):
    cache = PrefixCache(pages, SIZE, caching=False)
    assert run(cache, list(range(20))) == 0
    assert run(cache, list(range(20))) == 0
    assert pages.free == PAGES
    cache.check()


def test_releasing_twice_is_a_bug(cache):
    holding = cache.hold(BASE, [], 4)
    cache.release(holding, [], 0)
    with pytest.raises(KeyError):
        cache.release(holding, [], 0)
