import pytest

from weft.actors.scheduler.slots import AdapterSlots
from weft.runtime.messages import Acquire, Acquired, AdapterLoad, Release


def acquired(digest):
    return Acquired(digest, f"/{digest}", 8, 100, 1)


@pytest.fixture
def slots():
    slots = AdapterSlots(2, held_max=4, policy="lru")
    yield slots
    slots.check()


def fetch(slots, *digests):
    for digest in digests:
        assert slots.want(digest) == [Acquire(digest)]
        slots.arrived(acquired(digest))


def test_an_adapter_is_asked_for_once(slots):
    assert slots.want("a") == [Acquire("a")]
    assert slots.want("a") == []
    assert not slots.is_ready("a")
    slots.arrived(acquired("a"))
    assert slots.is_ready("a")
    assert slots.want("a") == []


def test_the_first_pin_loads_and_later_ones_share(slots):
    fetch(slots, "a")
    assert slots.pin("a", 5, 5) == (0, [AdapterLoad(0, "a", "/a", [])])
    assert slots.pin("a", 6, 5) == (0, [])
    assert slots.pin_count == 2
    assert slots.pinned_since == {"a": 5}


def test_the_least_recently_used_unpinned_adapter_makes_room(slots):
    fetch(slots, "a", "b", "c")
    for digest in ("a", "b", "a"):
        slots.pin(digest, 0, 0)
        slots.unpin(digest)
    assert slots.pin("c", 2, 2) == (1, [AdapterLoad(1, "c", "/c", [])])
    assert slots.resident == {"a", "c"}
    assert slots.release_unused(frozenset()) == [Release("b")]


def test_first_in_first_out_ignores_use():
    slots = AdapterSlots(2, held_max=4, policy="fifo")
    fetch(slots, "a", "b", "c")
    for digest in ("a", "b", "a"):
        slots.pin(digest, 0, 0)
        slots.unpin(digest)
    assert slots.pin("c", 2, 2)[0] == 0


def test_pinned_slots_are_never_taken(slots):
    fetch(slots, "a", "b", "c")
    slots.pin("a", 0, 0)
    slots.pin("b", 0, 0)
    assert slots.pin("c", 2, 2) is None


def test_a_slot_whose_load_may_not_have_happened_is_not_taken(slots):
    fetch(slots, "a", "b", "c")
    slots.pin("a", 3, 2)
    slots.pin("b", 3, 2)
    slots.unpin("a")
    assert slots.pin("c", 4, 3) is None  # step 3 has not been answered
    assert slots.pin("c", 5, 4) is not None


def test_host_memory_is_bounded(slots):
    fetch(slots, "a", "b", "c", "d")
    assert slots.want("e") == []
    assert slots.release_unused(frozenset({"a", "b", "c"})) == [Release("d")]
    assert slots.want("e") == [Acquire("e")]


def test_what_is_waited_for_is_not_released(slots):
    fetch(slots, "a")
    assert slots.release_unused(frozenset({"a"})) == []
    assert slots.release_unused(frozenset()) == [Release("a")]
