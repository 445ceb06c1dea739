import os

import numpy as np
import pytest

from tests.actors.adapters.folders import BASE, folder, tensors
from tests.sim.files import MemoryFiles
from weft.actors.adapters.actor import REASON_CHARACTERS_MAX, AdapterStore
from weft.actors.adapters.cache import HostCache, Resident
from weft.actors.adapters.files import FileError, LocalFiles
from weft.runtime.actor import Turn
from weft.runtime.config import Config
from weft.runtime.messages import Acquire, Acquired, AcquireFailed, Catalog, Inspection, Release


class Shelf:
    """A store of a few adapters, with room on both links."""

    def __init__(self, names="abc", *, places=2, changes=None, policy="lru"):
        folders = {f"/{name}": folder(weights=tensors(seed=ord(name))) for name in names}
        self.files = MemoryFiles(folders | (changes or {}))
        self.room = {"tokenizer": 9, "scheduler": 9}
        config = Config(
            model="/base",
            adapters={path[1:]: path for path in self.files.folders},
            max_loras_per_batch=1,
            max_loaded_loras=places,
            lora_eviction_policy=policy,
        )
        self.store = AdapterStore(config, BASE, self.files, "/run", started_s=7)

    def advance(self):
        sends = self.store.advance(Turn(0, self.room.__getitem__))
        self.store.check()
        return sends

    def catalog(self):
        (to, catalog), *_ = self.advance()
        assert to == "tokenizer"
        assert isinstance(catalog, Catalog)
        return {entry.name: entry for entry in catalog.adapters}

    def hear(self, message):
        assert self.store.receive("scheduler", message, 0) == []

    def acquire(self, digest):
        self.hear(Acquire(digest))
        return [send.message for send in self.advance()]


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
        "/dora": folder({"use_dora": True}),
    }
    del changes["/pickled"]["adapter_model.safetensors"]
    catalog = Shelf("ab", changes=changes).catalog()
    assert catalog["a"].refused is None
    assert (catalog["a"].rank, catalog["a"].root, catalog["a"].created_s) == (4, "/a", 7)
    assert catalog["a"].digest == catalog["twin"].digest != catalog["b"].digest
    assert "there is none in /empty; check the path" in catalog["empty"].refused
    assert "pickled weights can run code" in catalog["pickled"].refused
    assert "adapter_config.json: use_dora" in catalog["dora"].refused
    assert catalog["dora"].digest == ""


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
    assert acquired == Acquired(
        digests["a"], f"/run/adapters/{digests['a']}.safetensors", 4, acquired.size_bytes, 2
    )
    assert len(shelf.files.written[acquired.path]) == acquired.size_bytes
    shelf.hear(Release(digests["a"]))
    assert shelf.files.written  # kept for the next one
    assert shelf.acquire(digests["a"]) == [acquired]


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
    assert [send.message.digest for send in shelf.advance()] == [digests["c"]]
    assert [send.message.digest for send in shelf.advance()] == [digests["a"]]
    assert shelf.store.is_idle


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
        lambda files: files.folders.update({"/a": folder({"use_dora": True})}),
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


def test_a_cache_full_of_pins_has_no_room():
    cache = HostCache(1, "lru")
    cache.add(Resident("a", "/a", 4, 10, 1))
    assert cache.has_room
    assert cache.pin("a")
    assert not cache.has_room
    assert cache.pin("b") is None
    cache.unpin("b")  # nobody's
    cache.unpin("a")
    assert [victim.digest for victim in cache.victims()] == ["a"]
    assert (len(cache), cache.evictions) == (0, 1)
    cache.check()


class TestLocalFiles:
    """On a real disk."""

    files = LocalFiles()

    def test_a_file_is_read_whole(self, tmp_path):
        (tmp_path / "a").write_bytes(b"content")
        assert self.files.names(str(tmp_path)) == ["a"]
        assert self.files.read(str(tmp_path), "a", bytes_max=7) == b"content"

    def test_a_file_that_is_too_large_is_not_read(self, tmp_path):
        (tmp_path / "a").write_bytes(b"content")
        with pytest.raises(FileError, match="7 bytes, more than any adapter"):
            self.files.read(str(tmp_path), "a", bytes_max=6)

    def test_a_link_out_of_the_folder_is_not_followed(self, tmp_path):
        (tmp_path / "secret").write_bytes(b"x")
        inside = tmp_path / "adapter"
        inside.mkdir()
        (inside / "out").symlink_to(tmp_path / "secret")
        (inside / "round").symlink_to(inside / "round")
        with pytest.raises(FileError, match="a link out of the folder"):
            self.files.read(str(inside), "out", bytes_max=9)
        with pytest.raises(FileError):
            self.files.read(str(inside), "round", bytes_max=9)

    def test_a_link_within_the_folder_is(self, tmp_path):
        (tmp_path / "blob").write_bytes(b"x")
        (tmp_path / "name").symlink_to("blob")
        assert self.files.read(str(tmp_path), "name", bytes_max=9) == b"x"

    def test_a_pipe_and_a_folder_are_no_files_and_nobody_waits(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "folder").mkdir()
        for name in ("pipe", "folder"):
            with pytest.raises(FileError, match=r"no regular file|Is a directory"):
                self.files.read(str(tmp_path), name, bytes_max=9)

    def test_what_is_missing_is_said(self, tmp_path):
        with pytest.raises(FileError, match="No such file"):
            self.files.names(str(tmp_path / "nowhere"))
        with pytest.raises(FileError, match="No such file"):
            self.files.read(str(tmp_path), "nothing", bytes_max=9)

    def test_a_file_is_written_as_a_whole_or_not_at_all(self, tmp_path):
        path = tmp_path / "run" / "a"
        self.files.write(str(path), [b"one", memoryview(b"two")])
        assert path.read_bytes() == b"onetwo"

        def failing():
            yield b"half"
            raise OSError("disk full")

        with pytest.raises(FileError, match="disk full"):
            self.files.write(str(path), failing())
        assert path.read_bytes() == b"onetwo"
        assert os.listdir(path.parent) == ["a"]
        self.files.remove(str(path))
        self.files.remove(str(path))
        assert not path.exists()
