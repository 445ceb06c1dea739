"""The cache against a list: what stays, what goes next, and what is counted."""

import random
from collections import Counter

import pytest

from weft.actors.adapters.cache import Bounds, HostCache, Resident

WIDE = 10**9
ONE, OTHER = HOLDERS = "scheduler0", "scheduler1"


def entries(count, policy="lru"):
    """A cache that is bounded by the number of adapters alone."""
    return HostCache(Bounds(WIDE, count), policy)


def room(size_bytes, policy="lru"):
    """A cache that is bounded by bytes alone."""
    return HostCache(Bounds(size_bytes), policy)


def resident(digest, size_bytes=10):
    return Resident(digest, f"/{digest}", 4, size_bytes, granules=1)


def put(cache, digest, size_bytes=10):
    """Add an adapter as the store does; returns who had to go, None if there is no room."""
    gone = cache.reserve(digest, size_bytes)
    cache.check()
    if gone is None:
        return None
    cache.add(resident(digest, size_bytes))
    cache.check()
    return [victim.digest for victim in gone]


def use(cache, digest):
    assert cache.pin(digest, ONE) is not None
    cache.unpin(digest, ONE)
    cache.check()


@pytest.mark.parametrize("make", [lambda p: entries(3, p), lambda p: room(30, p)])
@pytest.mark.parametrize(("policy", "order"), [("lru", "bca"), ("fifo", "abc")])
def test_the_policy_says_who_goes_next(policy, order, make):
    cache = make(policy)
    for digest in "abc":
        assert put(cache, digest) == []
    use(cache, "a")
    assert [put(cache, digest) for digest in "xyz"] == [[digest] for digest in order]
    assert cache.evictions == 3


def test_a_release_is_a_use():
    cache = entries(3)
    for digest in "abc":
        put(cache, digest)
    cache.pin("a", ONE)
    use(cache, "b")
    use(cache, "c")
    cache.unpin("a", ONE)
    assert [put(cache, digest) for digest in "xyz"] == [["b"], ["c"], ["a"]]


@pytest.mark.parametrize("policy", ["lru", "fifo"])
def test_who_is_pinned_is_passed_over_and_keeps_its_place(policy):
    cache = entries(2, policy)
    put(cache, "a")
    cache.pin("a", ONE)
    put(cache, "b")
    assert put(cache, "c") == ["b"]
    assert cache.pinned == 1
    assert cache.pin("a", ONE) == resident("a")


def test_a_pin_is_counted_as_often_as_it_is_taken():
    cache = entries(1)
    put(cache, "a")
    for _ in range(3):
        cache.pin("a", ONE)
    for _ in range(2):
        cache.unpin("a", ONE)
        cache.check()
    assert put(cache, "b") is None
    cache.unpin("a", ONE)
    assert put(cache, "b") == ["a"]
    assert cache.pinned == 0


def test_all_pins_can_be_taken_away_at_once():
    cache = entries(2)
    for digest in "ab":
        put(cache, digest)
        cache.pin(digest, ONE)
    assert cache.unpin_all(ONE) == []
    cache.check()
    assert (cache.pinned, len(cache)) == (0, 2)
    cache.unpin("a", ONE)  # late, and nobody's
    cache.check()


def test_each_holder_has_pins_of_its_own():
    cache = entries(1)
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


def test_several_small_ones_go_for_a_large_one_and_no_more_than_must():
    cache = room(100)
    for digest in "abcd":
        put(cache, digest, 25)
    assert put(cache, "x", 60) == ["a", "b", "c"]
    assert cache.size_bytes == 85


def test_what_stays_leaves_no_room_for_more_than_there_is():
    cache = room(100)
    put(cache, "pinned", 40)
    cache.pin("pinned", ONE)
    cache.keep("kept")
    put(cache, "kept", 30)
    put(cache, "other", 20)
    assert put(cache, "x", 31) is None
    assert cache.get("other") is not None  # nobody goes for nothing
    assert put(cache, "x", 30) == ["other"]


def test_what_is_being_read_takes_its_room_from_the_beginning():
    cache = room(100)
    put(cache, "a", 60)
    assert [victim.digest for victim in cache.reserve("b", 70)] == ["a"]
    assert (cache.size_bytes, cache.reserved_bytes) == (0, 70)
    assert cache.reserve("c", 40) is None
    cache.give_up("b")
    assert put(cache, "c", 40) == []
    cache.give_up("b")  # twice is once
    assert cache.size_bytes == 40
    cache.check()


def test_who_is_kept_stays_and_takes_no_place_of_the_others():
    cache = entries(1)
    cache.keep("a")
    put(cache, "a")
    assert put(cache, "b") == []
    assert put(cache, "c") == ["b"]
    assert [victim.digest for victim in cache.let_go("a")] == ["a"]  # c was used later
    cache.check()


def test_who_is_no_longer_kept_while_everybody_is_in_use_goes_when_it_can():
    cache = entries(1)
    cache.keep("a")
    for digest in "ab":
        put(cache, digest)
        cache.pin(digest, ONE)
    assert cache.let_go("a") == []
    cache.check()
    assert [victim.digest for victim in cache.unpin("a", ONE)] == ["a"]


def test_who_is_no_longer_kept_when_it_comes_goes_unless_somebody_pins_it():
    for is_pinned in (False, True):
        cache = entries(1)
        put(cache, "a")
        cache.pin("a", ONE)
        cache.keep("b")
        assert cache.reserve("b", 10) == []
        assert cache.spare("b") == []  # it is still on its way
        cache.add(resident("b"))
        if is_pinned:
            cache.pin("b", OTHER)
        assert [victim.digest for victim in cache.shrink()] == ([] if is_pinned else ["b"])
        cache.check()


@pytest.mark.parametrize("policy", ["lru", "fifo"])
def test_who_is_about_to_be_asked_for_goes_after_the_others(policy):
    cache = room(30, policy)
    for digest in "abc":
        put(cache, digest)
    [gone] = cache.reserve("x", 10, wanted={"a", "x"})
    assert gone.digest == "b"


def test_who_is_spared_goes_after_all_others():
    cache = room(30)
    for digest in "abc":
        put(cache, digest)
    cache.spare("a")
    cache.pin("c", ONE)
    assert [put(cache, digest) for digest in "xy"] == [["b"], ["x"]]
    cache.pin("y", ONE)
    assert put(cache, "z") == ["a"]


def test_dropping_what_is_being_read_ends_the_wait_for_it():
    cache = room(30)
    cache.reserve("a", 30)
    assert cache.drop("a") is None
    assert not cache.is_awaited("a")
    assert put(cache, "b", 30) == []


def test_more_than_there_is_room_for_is_a_bug():
    cache = entries(1)
    put(cache, "a")
    with pytest.raises(AssertionError, match="a is there"):
        cache.reserve("a", 10)
    with pytest.raises(AssertionError, match="nothing is reserved for b"):
        cache.add(resident("b"))
    cache.reserve("b", 10)
    with pytest.raises(AssertionError, match="11 bytes, not 10"):
        cache.add(resident("b", 11))
    with pytest.raises(AssertionError):
        entries(0)
    with pytest.raises(AssertionError):
        room(0)


def test_check_finds_a_pin_of_nobody():
    cache = entries(1)
    put(cache, "a")
    cache.pin("a", ONE)
    cache._bytes -= cache._residents.pop("a").size_bytes
    with pytest.raises(AssertionError):
        cache.check()


SIZES = {digest: 7 * (index + 1) for index, digest in enumerate("abcdefgh")}


class Line:
    """What a cache must do, slowly: who is there, the next to go first."""

    def __init__(self, bounds, policy):
        self.bounds, self.policy = bounds, policy
        self.line, self.pins = [], Counter()  # by digest and holder
        self.kept, self.spared = set(), set()
        self.evictions = 0

    @property
    def pinned(self):
        return {digest for digest, _ in +self.pins}

    def touch(self, digest):
        if self.policy == "lru":
            self.line.remove(digest)
            self.line.append(digest)

    def shrink(self, extra=None):
        """Return who goes, now that ``extra`` is to come."""
        gone = []
        while self._is_over(extra):
            free = [d for d in self.line if d not in self.pinned | self.kept]
            if not free:
                break
            gone.append(min(free, key=lambda d: d in self.spared))
            self.line.remove(gone[-1])
        self.evictions += len(gone)
        return gone

    def fits(self, digest):
        stay = [d for d in self.line if d in self.pinned | self.kept] + [digest]
        places = sum(d not in self.kept for d in stay)
        limit = self.bounds.entries
        is_placed = limit is None or digest in self.kept or places <= limit
        return is_placed and sum(SIZES[d] for d in stay) <= self.bounds.size_bytes

    def _is_over(self, extra):
        there = self.line + ([] if extra is None else [extra])
        places = sum(d not in self.kept for d in there)
        limit = self.bounds.entries
        too_many = limit is not None and places > limit
        return too_many or sum(SIZES[d] for d in there) > self.bounds.size_bytes


class Walk:
    """A cache and its list, to which the same things happen."""

    def __init__(self, seed, policy):
        self.rng = random.Random(seed)
        bounds = Bounds(self.rng.choice((60, 100, WIDE)), self.rng.choice((None, 2, 4)))
        self.cache, self.line = HostCache(bounds, policy), Line(bounds, policy)

    def act(self):
        kinds = {"lost": 1, "pin": 30, "unpin": 30, "keep": 4, "spare": 4, "let_go": 6}
        [kind] = self.rng.choices(list(kinds), kinds.values())
        getattr(self, kind)(self.rng.choice(list(SIZES)))

    def gone(self, victims):
        assert [victim.digest for victim in victims] == self.line.shrink()

    def lost(self, _):
        holder = self.rng.choice(HOLDERS)
        for pin in [pin for pin in self.line.pins if pin[1] == holder]:
            del self.line.pins[pin]
        self.gone(self.cache.unpin_all(holder))

    def pin(self, digest):
        line, holder = self.line, self.rng.choice(HOLDERS)
        assert (self.cache.pin(digest, holder) is not None) == (digest in line.line)
        if digest in line.line:
            line.pins[digest, holder] += 1
            line.touch(digest)
        elif line.fits(digest):
            assert put(self.cache, digest, SIZES[digest]) == line.shrink(digest)
            line.line.append(digest)
        else:
            assert put(self.cache, digest, SIZES[digest]) is None

    def unpin(self, digest):
        holder = self.rng.choice(HOLDERS)
        if self.line.pins[digest, holder]:
            self.line.pins[digest, holder] -= 1
            self.line.touch(digest)
        self.gone(self.cache.unpin(digest, holder))

    def keep(self, digest):
        """The store keeps no more than half of the bytes."""
        line = self.line
        if sum(SIZES[d] for d in line.kept | {digest}) <= line.bounds.size_bytes // 2:
            self.cache.keep(digest)
            line.kept.add(digest)
            line.spared.discard(digest)

    def spare(self, digest):
        self.line.kept.discard(digest)
        self.line.spared.add(digest)
        self.gone(self.cache.spare(digest))

    def let_go(self, digest):
        self.line.kept.discard(digest)
        self.line.spared.discard(digest)
        self.gone(self.cache.let_go(digest))


@pytest.mark.parametrize("policy", ["lru", "fifo"])
@pytest.mark.parametrize("seed", range(8))
def test_any_order_of_events_agrees_with_a_list(policy, seed):
    walk = Walk(seed, policy)
    cache, line = walk.cache, walk.line
    for _ in range(500):
        walk.act()
        cache.check()
        assert (len(cache), cache.pinned) == (len(line.line), len(line.pinned))
        assert cache.evictions == line.evictions
        assert cache.size_bytes == sum(SIZES[d] for d in line.line)
