"""What host memory and the device have for adapters, and what is said to those who want more."""

import pytest

from tests.actors.adapters.shelf import Shelf
from weft.runtime.messages import (
    AdapterRequest,
    DeviceRoom,
    KeepOnDevice,
    ListAdapters,
    LoadAdapter,
    PinAdapter,
    Release,
    UnloadAdapter,
)


@pytest.fixture
def size_bytes():
    shelf = Shelf("a")
    return shelf.acquire(shelf.catalog()["a"].digest)[0].size_bytes


def room_for(count, size_bytes, **options):
    """A shelf whose host memory holds so many adapters."""
    shelf = Shelf(
        "abcde", places=None, adapter_host_memory_mib=count * size_bytes / 2**20, **options
    )
    return shelf, {name: entry.digest for name, entry in shelf.catalog().items()}


def test_bytes_bound_what_is_in_host_memory(size_bytes):
    shelf, digests = room_for(2.5, size_bytes)
    for name in "abcde":
        assert shelf.acquire(digests[name])
        shelf.hear(Release(digests[name]))
        assert sum(map(len, shelf.files.written.values())) <= 2.5 * size_bytes
    assert shelf.counters()["loaded_bytes"] == 2 * size_bytes
    assert shelf.counters()["evictions_total"] == 3


def test_half_of_host_memory_may_be_pinned_and_the_rest_goes_round(size_bytes):
    shelf, digests = room_for(4.5, size_bytes)
    for name in "ab":
        assert shelf.ask(PinAdapter("l", name, pinned=True)).outcome == "pinned"
    refused = shelf.ask(PinAdapter("l", "c", pinned=True))
    assert (refused.code, refused.param) == ("invalid_value", "pinned")
    assert "unpin another one" in refused.message
    assert shelf.ask(PinAdapter("l", "a", pinned=True)).outcome == "pinned"  # it is already
    for name in "cde" * 3:
        assert shelf.acquire(digests[name])
        shelf.hear(Release(digests[name]))
    written = {path[14:78] for path in shelf.files.written}
    assert {digests["a"], digests["b"]} < written
    assert shelf.ask(PinAdapter("l", "a", pinned=False)).outcome == "unpinned"
    assert shelf.ask(PinAdapter("l", "c", pinned=True)).outcome == "pinned"


def test_an_adapter_of_more_than_half_of_host_memory_is_refused(size_bytes):
    shelf = Shelf("a", adapter_host_memory_mib=1.5 * size_bytes / 2**20, adapter_roots=["/"])
    refused = shelf.catalog()["a"].refused
    assert f"it takes {size_bytes} bytes of host memory" in refused
    assert "adapter_host_memory_mib; raise it" in refused
    answer = shelf.ask(LoadAdapter("l", "b", "/a"))
    assert answer.code == "bad_adapter"
    assert shelf.files.written == {}


def test_a_load_is_not_pinned_where_all_room_is_in_use(size_bytes):
    shelf, digests = room_for(2.5, size_bytes, adapter_roots=["/"])
    for name in "ab":
        shelf.acquire(digests[name])
    answer = shelf.ask(LoadAdapter("l", "f", "/c", pinned=True))
    assert (answer.code, answer.retry_after_s) == ("queue_full", 1.0)
    assert shelf.ask(LoadAdapter("l", "f", "/c")).outcome == "loaded"
    assert len(shelf.files.written) == 2
    shelf.hear(Release(digests["a"]))
    answer = shelf.ask(LoadAdapter("l", "g", "/d", pinned=True))
    assert (answer.outcome, answer.adapters[0].tier) == ("loaded", "host")


@pytest.fixture
def pins():
    """A shelf of adapters of one page each, of which the device may keep three, and their names."""
    shelf = Shelf("abcde", places=None, adapter_roots=["/"])
    names = {entry.digest: name for name, entry in shelf.catalog().items()}
    return shelf, names


def told(shelf, names):
    """What the scheduler is told to keep on the device, each time, by names."""
    sends = [send.message for send in shelf.advance()]
    kept = [message.digests for message in sends if isinstance(message, KeepOnDevice)]
    return [{names[digest] for digest in digests} for digests in kept]


def pin_to_device(shelf, name):
    shelf.hear(AdapterRequest("client", PinAdapter("l", name, pinned=True, on_device=True)))


def test_a_scheduler_keeps_on_the_device_what_is_pinned_to_it(pins):
    shelf, names = pins
    refused = shelf.ask(PinAdapter("l", "a", pinned=True, on_device=True))
    assert (refused.code, refused.retry_after_s) == ("queue_full", 1.0)
    shelf.hear(DeviceRoom(3, 3, 2))
    assert told(shelf, names) == []
    pin_to_device(shelf, "a")
    assert told(shelf, names) == [{"a"}]
    pin_to_device(shelf, "b")
    assert told(shelf, names) == [{"a", "b"}]
    assert told(shelf, names) == []
    shelf.hear(AdapterRequest("client", PinAdapter("l", "a", pinned=True)))  # in host memory alone
    assert told(shelf, names) == [{"b"}]
    [a] = shelf.ask(ListAdapters("l", "a")).adapters
    assert (a.pinned, a.pinned_on_device) == (True, False)
    shelf.hear(AdapterRequest("client", PinAdapter("l", "b", pinned=False)))
    assert told(shelf, names) == [set()]


@pytest.mark.parametrize(
    ("room", "text"),
    [(DeviceRoom(2, 9, 2), "max_loaded_loras"), (DeviceRoom(9, 2, 2), "kv_cache_memory_mib")],
)
def test_what_is_too_much_for_the_device_is_refused(pins, room, text):
    shelf, names = pins
    shelf.hear(room)
    for name in "ab":
        pin_to_device(shelf, name)
    assert told(shelf, names) == [{"a", "b"}]
    refused = shelf.ask(PinAdapter("l", "c", pinned=True, on_device=True))
    assert (refused.code, refused.param) == ("invalid_value", "pinned")
    assert text in refused.message
    assert shelf.ask(PinAdapter("l", "c", pinned=True)).outcome == "pinned"


def test_the_device_keeps_what_a_name_means_now_and_nothing_that_has_no_name(pins):
    shelf, names = pins
    shelf.hear(DeviceRoom(3, 3, 2))
    pin_to_device(shelf, "a")
    shelf.advance()
    shelf.hear(AdapterRequest("client", LoadAdapter("l", "a", "/b", replace=True)))
    assert told(shelf, names) == [{"b"}]
    shelf.hear(AdapterRequest("client", UnloadAdapter("l", "a")))
    assert told(shelf, names) == [set()]


def test_a_scheduler_that_comes_back_is_told_again(pins):
    shelf, names = pins
    shelf.hear(DeviceRoom(3, 3, 2))
    pin_to_device(shelf, "a")
    shelf.advance()
    shelf.store.lost("scheduler", 0)
    assert told(shelf, names) == []
    shelf.hear(DeviceRoom(3, 3, 2))
    assert told(shelf, names) == [{"a"}]
