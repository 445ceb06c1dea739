import msgspec
import numpy as np
import pytest

from tests.actors.adapters.folders import folder, tensors
from tests.actors.adapters.shelf import Shelf
from weft.actors.adapters.loader import REASON_CHARACTERS_MAX
from weft.runtime.messages import (
    Acquire,
    Acquired,
    AcquireFailed,
    Catalog,
    Inspection,
    Release,
)


@pytest.fixture
def shelf():
    return Shelf()


@pytest.fixture
def digests(shelf):
    return {name: entry.digest for name, entry in shelf.catalog().items()}


def test_the_catalog_names_every_adapter_and_what_is_wrong_with_it():
    changes = {
        "/twin": folder(weights=tensors(seed=ord("a"))),
        "/empty": {},
        "/pickled": {**folder(), "adapter_model.bin": b"x"},
        "/qalora": folder({"use_qalora": True}),
    }
    del changes["/pickled"]["adapter_model.safetensors"]
    catalog = Shelf("ab", changes=changes).catalog()
    assert catalog["a"].refused is None
    assert (catalog["a"].rank, catalog["a"].root, catalog["a"].created_s) == (4, "/a", 7)
    assert catalog["a"].digest == catalog["twin"].digest != catalog["b"].digest
    assert "there is none in /empty; check the path" in catalog["empty"].refused
    assert "pickled weights can run code" in catalog["pickled"].refused
    assert "adapter_config.json: use_qalora" in catalog["qalora"].refused
    assert catalog["qalora"].digest == ""


def test_however_long_the_names_in_a_file_are_what_is_said_of_it_is_short():
    long = "x" * 1_000_000
    changes = {
        "/field": folder({long: 1}),
        "/rank": folder({"rank_pattern": {long: 0}}),
        "/tensor": folder(weights={long: np.zeros(1, np.int8)}),
    }
    for name, entry in Shelf("", changes=changes).catalog().items():
        assert "xxx" in entry.refused, name
        assert len(entry.refused) <= REASON_CHARACTERS_MAX


def test_an_acquired_adapter_lies_in_its_file_until_it_is_released(shelf, digests):
    [acquired] = shelf.acquire(digests["a"])
    path = f"/run/adapters/{digests['a']}.safetensors"
    assert acquired == Acquired(digests["a"], path, 4, acquired.size_bytes, 2, was_read=True)
    assert len(shelf.files.written[acquired.path]) == acquired.size_bytes
    shelf.hear(Release(digests["a"]))
    assert shelf.files.written  # kept for the next one
    again = [msgspec.structs.replace(acquired, was_read=False)]
    assert shelf.acquire(digests["a"]) == again


def test_the_least_recently_used_leaves_first(shelf, digests):
    for name in "aba":
        shelf.acquire(digests[name])
        shelf.hear(Release(digests[name]))
    shelf.acquire(digests["c"])
    assert {path[14:78] for path in shelf.files.written} == {digests["a"], digests["c"]}


def test_the_first_in_leaves_first_under_fifo():
    shelf = Shelf(policy="fifo")
    digests = {name: entry.digest for name, entry in shelf.catalog().items()}
    for name in "aba":
        shelf.acquire(digests[name])
        shelf.hear(Release(digests[name]))
    shelf.acquire(digests["c"])
    assert {path[14:78] for path in shelf.files.written} == {digests["b"], digests["c"]}


def test_pins_wait_for_a_place_in_order(shelf, digests):
    assert shelf.acquire(digests["a"])
    assert shelf.acquire(digests["b"])
    assert shelf.acquire(digests["c"]) == []
    assert shelf.acquire(digests["a"]) == []  # behind the one that waits
    assert not shelf.store.is_idle
    shelf.hear(Release(digests["b"]))
    answers = [send.message.digest for send in shelf.advance()]
    assert sorted(answers) == sorted([digests["c"], digests["a"]])
    assert shelf.store.is_idle


def test_who_needs_nothing_read_does_not_wait_for_what_is_being_read():
    shelf = Shelf(places=3)
    digests = {name: entry.digest for name, entry in shelf.catalog().items()}
    shelf.acquire(digests["a"])
    shelf.loader.is_slow = True
    assert shelf.acquire(digests["b"]) == []
    [acquired] = shelf.acquire(digests["a"])
    assert acquired.digest == digests["a"]
    assert not shelf.store.is_idle
    shelf.loader.is_slow = False
    assert [send.message.digest for send in shelf.advance()] == [digests["b"]]
    assert shelf.store.is_idle


def test_what_several_wait_for_is_read_once_and_answered_as_often(shelf, digests):
    shelf.loader.is_slow = True
    assert [shelf.acquire(digests["b"]) for _ in range(3)] == [[], [], []]
    assert shelf.counters()["loading"] == 1
    shelf.loader.is_slow = False
    assert [send.message.digest for send in shelf.advance()] == [digests["b"]] * 3


def test_a_place_is_kept_for_what_is_being_read(shelf, digests):
    """It takes memory from the moment at which it is read, so who goes for it goes before."""
    shelf.acquire(digests["a"])
    shelf.acquire(digests["b"])
    for name in "ab":
        shelf.hear(Release(digests[name]))
    shelf.loader.is_slow = True
    assert shelf.acquire(digests["c"]) == []
    assert len(shelf.acquire(digests["b"])) == 1
    assert shelf.acquire(digests["a"]) == []
    shelf.loader.is_slow = False
    assert [send.message.digest for send in shelf.advance()] == [digests["c"]]
    shelf.hear(Release(digests["b"]))
    assert [send.message.digest for send in shelf.advance()] == [digests["a"]]


def test_a_pin_counts_as_often_as_it_was_asked_for(shelf, digests):
    shelf.acquire(digests["a"])
    shelf.acquire(digests["a"])
    shelf.acquire(digests["b"])
    shelf.hear(Release(digests["a"]))
    assert shelf.acquire(digests["c"]) == []
    shelf.hear(Release(digests["a"]))
    assert len(shelf.advance()) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.folders.update({"/a": folder(weights=tensors(seed=99))}),
        lambda files: files.folders.update({"/a": {}}),
        lambda files: files.folders.update({"/a": folder({"use_qalora": True})}),
    ],
    ids=["other weights", "gone", "not supported"],
)
def test_an_adapter_that_has_changed_is_not_served(shelf, digests, change):
    change(shelf.files)
    [failed] = shelf.acquire(digests["a"])
    assert isinstance(failed, AcquireFailed)
    assert failed.digest == digests["a"]
    assert failed.reason
    assert shelf.acquire(digests["b"])


def test_an_unknown_digest_fails(shelf, digests):
    [failed] = shelf.acquire("0" * 64)
    assert isinstance(failed, AcquireFailed)


def test_what_a_lost_scheduler_had_pinned_is_free(shelf, digests):
    shelf.acquire(digests["a"])
    shelf.acquire(digests["b"])
    shelf.acquire(digests["c"])
    assert shelf.store.lost("scheduler", 0) == []
    assert shelf.store.is_idle
    assert shelf.acquire(digests["c"])


def test_answers_wait_for_room(shelf, digests):
    shelf.room["scheduler"] = 0
    assert shelf.acquire(digests["a"]) == []
    assert not shelf.store.is_idle
    shelf.room["scheduler"] = 1
    assert len(shelf.advance()) == 1


def test_an_inspection_is_passed_on_with_counters(shelf, digests):
    shelf.acquire(digests["a"])
    shelf.hear(Inspection("c", "l", {"tokenizer": {"waiting": 1.0}}))
    [(to, inspection)] = shelf.advance()
    assert to == "scheduler"
    assert inspection.sections["tokenizer"] == {"waiting": 1.0}
    counters = inspection.sections["adapters"]
    assert (counters["known"], counters["loaded"], counters["pinned"]) == (3, 1, 1)
    assert counters["loaded_bytes"] > 0


def test_one_content_under_two_names_outlives_a_change_to_either_folder():
    twin = folder(weights=tensors(seed=ord("a")))
    for broken in ("/a", "/twin"):
        shelf = Shelf("ab", changes={"/twin": twin})
        digest = shelf.catalog()["twin"].digest
        shelf.files.folders[broken] = folder(weights=tensors(seed=1))
        [acquired] = shelf.acquire(digest)
        assert isinstance(acquired, Acquired)
    shelf = Shelf("ab", changes={"/twin": twin})
    digest = shelf.catalog()["twin"].digest
    shelf.files.folders |= {"/a": {}, "/twin": folder(weights=tensors(seed=1))}
    [failed] = shelf.acquire(digest)
    assert failed.reason == "/twin has changed since it was checked; load it again to take it over"


def test_a_full_disk_fails_one_adapter_and_the_next_is_served(shelf, digests):
    shelf.acquire(digests["a"])
    shelf.hear(Release(digests["a"]))
    shelf.files.is_full = True
    [failed] = shelf.acquire(digests["b"])
    assert failed == AcquireFailed(digests["b"], failed.reason)
    assert "No space left" in failed.reason
    shelf.files.is_full = False
    assert isinstance(shelf.acquire(digests["b"])[0], Acquired)
    assert shelf.store.is_idle


def test_what_a_lost_scheduler_was_about_to_hear_is_not_told_to_the_next(shelf, digests):
    shelf.room["scheduler"] = 0
    shelf.acquire(digests["a"])
    shelf.acquire("0" * 64)
    shelf.hear(Inspection("c", "l", {}))
    shelf.store.lost("scheduler", 0)
    shelf.room["scheduler"] = 9
    [(to, message)] = shelf.advance()
    assert (to, type(message)) == ("scheduler", Inspection)
    assert message.sections["adapters"]["pinned"] == 1  # as it was when it was asked
    assert isinstance(shelf.acquire(digests["b"])[0], Acquired)


def test_a_full_link_holds_up_only_its_own_messages():
    shelf = Shelf()
    shelf.room["tokenizer"] = 0
    assert shelf.advance() == []
    shelf.room["scheduler"] = 2
    for number in range(5):
        shelf.hear(Acquire(f"{number:064}"))
    told = []
    for _ in range(6):
        sends = shelf.advance()
        assert {send.to for send in sends} <= {"scheduler"}
        assert len(sends) <= 2
        told += [send.message.digest for send in sends]
    assert told == [f"{number:064}" for number in range(5)]
    shelf.room["tokenizer"] = 1
    assert [type(send.message) for send in shelf.advance()] == [Catalog]


def test_counters_say_what_is_there_and_who_waits():
    shelf = Shelf("abc", changes={"/bad": {}, "/twin": folder(weights=tensors(seed=ord("a")))})
    digests = {name: entry.digest for name, entry in shelf.catalog().items()}
    sizes = [shelf.acquire(digests[name])[0].size_bytes for name in "ab"]
    shelf.acquire(digests["c"])
    shelf.acquire(digests["a"])
    counters = shelf.counters()
    assert counters.pop("read_us_total") == 0  # the clock stands still here
    assert counters.pop("bytes_max") == 4096 * 2**20
    assert counters == {
        "names": 5, "known": 3, "refused": 1, "loaded": 2, "loaded_bytes": sum(sizes),
        "loading_bytes": 0, "pinned": 2, "kept": 0, "leaving": 0, "waiting": 2, "loading": 0,
        "evictions_total": 0, "hits_total": 1, "misses_total": 3, "reads_total": 5,
        "read_failures_total": 1, "loads_total": 0, "unloads_total": 0,
    }  # fmt: skip
    for name in "aabb":
        shelf.hear(Release(digests[name]))
    assert {send.message.digest for send in shelf.advance()} == {digests["c"], digests["a"]}
    counters = shelf.counters()
    assert (counters["pinned"], counters["waiting"], counters["evictions_total"]) == (2, 0, 1)
