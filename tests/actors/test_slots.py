import pytest

from weft.actors.scheduler.pages import Pages
from weft.actors.scheduler.slots import AdapterSlots
from weft.runtime.messages import Acquired, AdapterLoad

PAGES = 12
GRANULES = 4  # of a page


class Device:
    """A table of adapters over a small pool, and pages that somebody else took."""

    def __init__(self, *, slots=8, policy="lru"):
        self.pages = Pages(PAGES)
        self.slots = AdapterSlots(slots, self.pages, page_granules=GRANULES, policy=policy)
        self.others = []

    def load(self, digest, granules=8, step=0):
        return self.slots.load(Acquired(digest, f"/{digest}", 8, 100, granules), step)

    def use(self, digest):
        """One sequence runs with an adapter and ends."""
        if digest not in self.slots.resident:
            self.load(digest)
        self.slots.pin(digest, 0)
        self.slots.unpin(digest)

    def take(self, count):
        self.others += self.pages.take(count)

    def check(self):
        self.slots.check()
        self.pages.check(self.slots.owned(), self.others)


@pytest.fixture
def device():
    device = Device()
    yield device
    device.check()


@pytest.mark.parametrize(("granules", "count"), [(1, 1), (4, 1), (5, 2), (48, 12)])
def test_an_adapter_takes_as_many_pages_as_its_granules_fill(device, granules, count):
    assert device.load("a", granules) == AdapterLoad(0, "a", "/a", list(range(count)))
    assert device.slots.page_count("a", None) == device.slots.pages_owned == count


def test_sequences_share_a_slot_and_the_first_says_since_when_it_is_used(device):
    device.load("a")
    assert device.slots.pin("a", 5) == device.slots.pin("a", 6) == 0
    assert device.slots.pin_count == 2
    assert device.slots.pinned_since == {"a": 5}
    device.slots.unpin("a")
    assert device.slots.pinned == {"a"}
    device.slots.unpin("a")
    assert not device.slots.pinned


def test_an_adapter_stays_while_there_is_room_though_nobody_uses_it(device):
    for digest in "abcdef":
        device.use(digest)
    assert device.slots.resident == set("abcdef")
    assert (device.pages.free, device.slots.pages_idle) == (0, 12)
    assert device.slots.evictions == 0


def test_when_pages_are_needed_the_least_recently_used_gives_up_all_of_its_own(device):
    for digest in "abcdefab":
        device.use(digest)
    device.take(3)
    assert device.slots.resident == set("efab")
    assert (device.pages.free, device.slots.evictions) == (1, 2)


def test_first_in_first_out_ignores_use():
    device = Device(policy="fifo")
    for digest in "abcdefab":
        device.use(digest)
    device.take(3)
    assert device.slots.resident == set("cdef")
    device.check()


def test_one_that_is_in_use_outlives_those_behind_it():
    for policy in ("lru", "fifo"):
        device = Device(policy=policy)
        device.load("a")
        device.slots.pin("a", 0)
        for digest in "bcdef":
            device.use(digest)
        device.take(4)
        assert device.slots.resident == set("adef")
        device.check()


def test_without_a_free_slot_an_idle_adapter_goes_though_there_are_pages():
    device = Device(slots=2)
    device.use("a")
    device.use("b")
    device.slots.pin("a", 0)
    load = device.load("c")
    assert load.slot == 1
    assert device.slots.resident == {"a", "c"}
    assert device.pages.free == PAGES - 4
    device.check()


def test_a_slot_is_given_away_again_after_eviction():
    device = Device(slots=2)
    seen = set()
    for digest in "abcabc":
        device.use(digest)
        seen |= {device.slots.pin(digest, 0)}
        device.slots.unpin(digest)
        device.check()
    assert seen == {0, 1}
    assert device.slots.evictions == 4


def test_an_adapter_for_which_there_is_no_room_is_a_bug(device):
    device.load("a")
    device.slots.pin("a", 0)
    with pytest.raises(AssertionError, match="11 of 10 available pages"):
        device.load("b", 44)


@pytest.mark.parametrize("policy", ["lru", "fifo"])
def test_who_is_to_stay_stays_while_others_go(policy):
    device = Device(policy=policy)
    device.slots.stay(["a", "x"])
    for digest in "abcdef":
        device.use(digest)
        device.slots.hold()
        device.check()
    assert (device.slots.held, device.slots.missing) == (1, ["x"])
    device.take(10)
    assert device.slots.resident == {"a"}
    assert device.pages.available == 0
    device.check()


def test_who_is_to_stay_goes_where_nothing_else_helps_and_last_of_all(device):
    device.slots.stay(["a", "b"])
    for digest in "abc":
        device.use(digest)
    device.slots.hold()
    device.slots.pin("b", 0)
    assert device.slots.relent()
    device.take(8)
    assert device.slots.resident == {"a", "b"}
    device.slots.hold()
    assert device.slots.held == 2
    device.check()
    assert device.slots.relent()
    device.take(2)
    assert device.slots.resident == {"b"}
    assert not device.slots.relent()
    device.slots.unpin("b")


def test_who_need_not_stay_any_more_can_go(device):
    device.slots.stay(["a"])
    device.use("a")
    device.slots.hold()
    device.slots.stay([])
    device.take(12)
    assert not device.slots.resident


def test_what_is_dropped_goes_though_it_was_to_stay(device):
    device.slots.stay(["a"])
    device.use("a")
    device.slots.hold()
    device.slots.drop("a")
    assert device.pages.free == PAGES


def test_a_slot_is_taken_from_whoever_need_not_stay():
    device = Device(slots=2)
    device.slots.stay(["a"])
    device.use("a")
    device.slots.hold()
    device.use("b")
    device.use("c")
    assert device.slots.resident == {"a", "c"}
    device.check()
