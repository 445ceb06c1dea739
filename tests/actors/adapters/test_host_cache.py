"""The cache against a list: what stays, what goes next, and what is counted."""

import random

import pytest

from weft.actors.adapters.cache import HostCache, Resident

ONE, OTHER = "scheduler0", "scheduler1"


def resident(digest, size_bytes=10):
    return Resident(digest, f"/{digest}", 4, size_bytes, granules=1)


def put(cache, digest, size_bytes=10):
    """Add an adapter as the store does; returns who had to go."""
    gone = [victim.digest for victim in cache.victims()]
    cache.add(resident(digest, size_bytes))
    cache.check()
    return gone


def use(cache, digest):
    assert cache.pin(digest, ONE) is not None
    cache.unpin(digest, ONE)
    cache.check()


@pytest.mark.parametrize(("policy", "order"), [("lru", "bca"), ("fifo", "abc")])
def test_the_policy_says_who_goes_next(policy, order):
    cache = HostCache(3, policy)
    for digest in "abc":
        assert put(cache, digest) == []
    use(cache, "a")
    assert [put(cache, digest) for digest in "xyz"] == [[digest] for digest in order]
    assert cache.evictions == 3


def test_a_release_is_a_use():
    cache = HostCache(3, "lru")
    for digest in "abc":
        put(cache, digest)
    cache.pin("a", ONE)
    use(cache, "b")
    use(cache, "c")
    cache.unpin("a", ONE)
    assert [put(cache, digest) for digest in "xyz"] == [["b"], ["c"], ["a"]]


@pytest.mark.parametrize("policy", ["lru", "fifo"])
def test_who_is_pinned_is_passed_over_and_keeps_its_place(policy):
    cache = HostCache(2, policy)
    put(cache, "a")
    cache.pin("a", ONE)
    put(cache, "b")
    assert put(cache, "c") == ["b"]
    assert cache.pinned == 1
    assert cache.pin("a", ONE) == resident("a")


def test_a_pin_is_counted_as_often_as_it_is_taken():
    cache = HostCache(1, "lru")
    put(cache, "a")
    for _ in range(3):
        cache.pin("a", ONE)
    for _ in range(2):
        cache.unpin("a", ONE)
        cache.check()
    assert not cache.has_room
    cache.unpin("a", ONE)
    assert cache.has_room
    assert cache.pinned == 0


def test_all_pins_can_be_taken_away_at_once():
    cache = HostCache(2, "lru")
    for digest in "ab":
        put(cache, digest)
        cache.pin(digest, ONE)
    cache.unpin_all(ONE)
    cache.check()
    assert (cache.pinned, len(cache), cache.has_room) == (0, 2, True)
    cache.unpin("a", ONE)  # late, and nobody's
    cache.check()


def test_each_holder_has_pins_of_its_own():
    cache = HostCache(1, "lru")
    put(cache, "a")
    cache.pin("a", ONE)
    cache.pin("a", OTHER)
    cache.unpin("a", ONE)
    cache.unpin("a", ONE)  # once too often: the other's stays
    assert cache.is_pinned("a")
    cache.pin("a", ONE)
    cache.unpin_all(OTHER)
    assert cache.is_pinned("a")
    cache.unpin("a", ONE)
    assert not cache.is_pinned("a")
    cache.check()


def test_a_cache_full_of_pins_has_no_room():
    cache = HostCache(1, "lru")
    put(cache, "a")
    assert cache.has_room
    assert cache.pin("a", ONE)
    assert not cache.has_room
    assert cache.pin("b", ONE) is None
    cache.unpin("b", ONE)  # nobody's
    cache.unpin("a", ONE)
    assert put(cache, "b") == ["a"]
    assert (len(cache), cache.evictions) == (1, 1)


def test_bytes_are_those_of_who_is_there():
    cache = HostCache(2, "fifo")
    for digest, size_bytes in (("a", 1), ("b", 20), ("c", 300)):
        put(cache, digest, size_bytes)
    assert cache.size_bytes == 320


def test_more_than_there_is_room_for_is_a_bug():
    cache = HostCache(1, "lru")
    put(cache, "a")
    with pytest.raises(AssertionError):
        cache.add(resident("a"))
    with pytest.raises(AssertionError):
        cache.add(resident("b"))
    with pytest.raises(AssertionError):
        HostCache(0, "lru")


def test_check_finds_a_pin_of_nobody():
    cache = HostCache(1, "lru")
    put(cache, "a")
    cache.pin("a", ONE)
    del cache._residents["a"]
    with pytest.raises(AssertionError):
        cache.check()


@pytest.mark.parametrize("policy", ["lru", "fifo"])
@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_events_agrees_with_a_list(policy, seed):
    rng = random.Random(seed)
    places = rng.randint(1, 5)
    cache = HostCache(places, policy)
    line, pins, evictions = [], {}, 0  # the next to go is first in line

    def touch(digest):
        if policy == "lru":
            line.remove(digest)
            line.append(digest)

    for _ in range(400):
        digest, holder = rng.choice("abcdefgh"), rng.choice((ONE, OTHER))
        if rng.random() < 0.02:
            cache.unpin_all(holder)
            pins = {pin: count for pin, count in pins.items() if pin[1] != holder}
        elif rng.random() < 0.5:
            found = cache.pin(digest, holder)
            assert (found is not None) == (digest in line)
            if found is None and cache.has_room:
                pinned = {pin[0] for pin, count in pins.items() if count}
                unpinned = [other for other in line if other not in pinned]
                expected = unpinned[: max(0, len(line) + 1 - places)]
                assert put(cache, digest) == expected
                line = [other for other in line if other not in expected] + [digest]
                evictions += len(expected)
            elif found is not None:
                pins[digest, holder] = pins.get((digest, holder), 0) + 1
                touch(digest)
        else:
            cache.unpin(digest, holder)
            if pins.get((digest, holder)):
                pins[digest, holder] -= 1
                touch(digest)
        cache.check()
        pinned = len({pin[0] for pin, count in pins.items() if count})
        assert (len(cache), cache.pinned, cache.evictions) == (len(line), pinned, evictions)
        assert cache.has_room == (len(line) < places or pinned < len(line))
    assert evictions > 10
