import pytest

from weft.actors.scheduler.host import HostPins
from weft.runtime.messages import Acquire, Acquired, Release


def acquired(digest):
    return Acquired(digest, f"/{digest}", 8, 100, 4)


@pytest.fixture
def host():
    host = HostPins(4, 1000)
    yield host
    host.check()


def fetch(host, *digests):
    for digest in digests:
        assert host.want(digest) == [Acquire(digest)]
        host.arrived(acquired(digest))


def test_an_adapter_is_asked_for_once(host):
    assert host.want("a") == [Acquire("a")]
    assert host.want("a") == []
    assert host.get("a") is None
    host.arrived(acquired("a"))
    assert host.get("a") == acquired("a")
    assert host.want("a") == []


def test_one_that_could_not_be_had_may_be_asked_for_again(host):
    host.want("a")
    host.failed("a")
    assert host.want("a") == [Acquire("a")]


def test_host_memory_is_bounded(host):
    fetch(host, "a", "b", "c", "d")
    assert host.want("e") == []
    assert host.release({"a", "b", "c"}, 0) == [Release("d")]
    assert host.want("e") == [Acquire("e")]


def test_what_is_fetched_ahead_takes_half_of_the_places(host):
    for digest in "ab":
        assert host.has_room_ahead
        fetch(host, digest)
    assert not host.has_room_ahead


def test_what_is_fetched_ahead_takes_half_of_the_bytes():
    host = HostPins(100, 1000)
    for number in range(4):
        assert host.has_room_ahead
        fetch(host, str(number))
    # The one that is asked for now may be as large as any before, and one more after it.
    assert host.has_room_ahead
    host.want("a")
    assert not host.has_room_ahead
    host.failed("a")
    assert host.has_room_ahead
    fetch(host, "b")
    assert not host.has_room_ahead
    host.release(set(), 0)
    assert host.has_room_ahead
    host.check()


def test_one_by_itself_may_be_fetched_ahead_though_it_takes_all_there_is():
    host = HostPins(1, 100)
    fetch(host, "a")
    assert not host.has_room_ahead
    assert host.release(set(), 0) == [Release("a")]
    assert host.has_room_ahead


def test_what_is_needed_or_on_its_way_is_not_released(host):
    fetch(host, "a")
    host.want("b")
    assert host.release({"a"}, 0) == []
    assert host.release(set(), 0) == [Release("a")]
    assert len(host) == 1


def test_a_file_stays_until_the_step_that_reads_it_has_been_answered(host):
    fetch(host, "a")
    assert host.read("a", 5) == acquired("a")
    assert host.release(set(), 5) == []
    assert host.release(set(), 6) == [Release("a")]
    assert host.want("a") == [Acquire("a")]


def test_a_file_may_be_read_again_while_it_is_there(host):
    fetch(host, "a")
    host.read("a", 5)
    host.read("a", 6)
    assert host.release(set(), 6) == []
    assert host.release(set(), 7) == [Release("a")]


def test_reading_what_is_not_there_is_a_bug(host):
    host.want("a")
    with pytest.raises(AssertionError, match="a is not in host memory"):
        host.read("a", 0)
