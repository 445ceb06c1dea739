"""The cache on disk: whole or not there, bounded, shared, and nothing left of the dead."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from weft.actors.adapters.errors import BadAdapter, Unavailable
from weft.actors.adapters.sources.disk_cache import DiskCache


def open_cache(path, bytes_max=1000):
    return DiskCache(path / "cache", bytes_max)


@pytest.fixture
def cache(tmp_path):
    return open_cache(tmp_path)


def fill(cache, root, size=100, promised=None):
    with cache.filling(root, promised or size) as folder:
        if folder is not None:
            (folder / "a").write_bytes(bytes(size))


def roots(cache):
    return {found.entry.root for found in cache._found()}


def left_over(path):
    return sorted(file.name for file in (path / "cache" / "partial").iterdir())


def test_what_was_filled_is_there_for_everyone_who_opens_the_folder(cache, tmp_path):
    assert cache.lease("r") is None
    fill(cache, "r")
    lease = open_cache(tmp_path).lease("r")
    assert (lease.folder / "a").read_bytes() == bytes(100)
    lease.close()
    assert left_over(tmp_path) == []


def test_what_is_there_is_not_filled_again(cache):
    fill(cache, "r")
    with cache.filling("r", 100) as folder:
        assert folder is None


def test_an_exception_leaves_nothing(cache, tmp_path):
    with pytest.raises(ZeroDivisionError), cache.filling("r", 100) as folder:
        (folder / "a").write_bytes(bytes(1 // 0))
    assert cache.lease("r") is None
    assert left_over(tmp_path) == []


def test_the_one_used_longest_ago_leaves_first(cache):
    for root in "abcdefghij":
        fill(cache, root)
    cache.lease("a").close()
    fill(cache, "k", 200)
    assert roots(cache) == set("adefghijk")


def test_an_entry_in_use_stays_whatever_comes(cache, tmp_path):
    fill(cache, "a", 600)
    lease = cache.lease("a")
    other = open_cache(tmp_path)
    with pytest.raises(Unavailable, match="lacks 100 bytes"):
        fill(other, "b", 500)
    assert (lease.folder / "a").exists()
    assert left_over(tmp_path) == []
    lease.close()
    fill(other, "b", 500)
    assert roots(cache) == {"b"}


def test_what_is_larger_than_all_of_it_is_refused(cache):
    fill(cache, "a")
    with pytest.raises(BadAdapter, match="raise adapter_cache_mib"):
        fill(cache, "b", 1001)
    assert roots(cache) == {"a"}


def test_what_is_being_filled_counts(cache, tmp_path):
    other = open_cache(tmp_path)
    with cache.filling("a", 700) as folder:
        with pytest.raises(Unavailable):
            fill(other, "b", 400)
        (folder / "a").write_bytes(bytes(10))
    fill(other, "b", 400)  # it took less than had been thought
    assert roots(cache) == {"a", "b"}


def test_who_wants_what_another_fills_waits_for_it(cache, tmp_path):
    other, found = open_cache(tmp_path), []

    def want():
        with other.filling("a", 100) as folder:
            found.append(folder)

    thread = threading.Thread(target=want)
    with cache.filling("a", 100) as folder:
        thread.start()
        (folder / "a").write_bytes(b"x")
        assert found == []
    thread.join()
    assert found == [None]


def test_who_waits_for_one_that_fails_fills_it(cache, tmp_path):
    other = open_cache(tmp_path)
    thread = threading.Thread(target=fill, args=(other, "a"))
    with pytest.raises(RuntimeError), cache.filling("a", 100):
        [thread.start() for _ in range(2)]  # the second time it fails
    thread.join()
    assert roots(cache) == {"a"}


FILL = """
import os, sys
from pathlib import Path
from weft.actors.adapters.sources.disk_cache import DiskCache
with DiskCache(Path(sys.argv[1]), 1000).filling("r", 900) as folder:
    (folder / "a").write_bytes(bytes(450))
    (folder / "entry.json").write_text('{"root": "r", "size_bytes": 450}')
    os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_nothing_that_is_taken_for_complete(cache, tmp_path):
    killed = subprocess.run([sys.executable, "-c", FILL, str(tmp_path / "cache")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(left_over(tmp_path)) == 2
    assert cache.lease("r") is None
    fill(cache, "other", 1000)  # what the dead one had taken is free
    assert left_over(tmp_path) == []


def test_the_start_sweeps_what_the_dead_have_left(cache, tmp_path):
    subprocess.run([sys.executable, "-c", FILL, str(tmp_path / "cache")], check=False)
    with cache.filling("living", 10) as folder:
        open_cache(tmp_path).sweep()
        assert folder.is_dir()
        assert len(left_over(tmp_path)) == 2
    assert left_over(tmp_path) == []
    fill(cache, "r")
    assert cache.lease("r") is not None


def test_an_entry_that_says_nothing_of_itself_is_removed(cache):
    fill(cache, "a")
    lease = cache.lease("a")
    (lease.folder / "entry.json").write_text("{")
    lease.close()
    fill(cache, "b")
    assert roots(cache) == {"b"}


def test_what_a_source_meant_is_known_as_long_as_it_is_here(cache, tmp_path):
    fill(cache, "org/a@1", 600)
    cache.remember("org/a", "org/a@1")
    assert open_cache(tmp_path).recall("org/a") == "org/a@1"
    assert cache.recall("org/b") is None
    fill(cache, "b", 600)
    assert cache.recall("org/a") is None
    assert list((tmp_path / "cache" / "refs").iterdir()) == []


def test_a_digest_is_noted_beside_its_entry_and_goes_with_it(cache):
    assert cache.digest("a") is None
    cache.note_digest("a", "d")  # nowhere
    fill(cache, "a")
    assert cache.digest("a") is None
    cache.note_digest("a", "d")
    assert cache.digest("a") == "d"
    cache.forget("a")
    assert cache.digest("a") is None
    assert cache.lease("a") is None


def test_a_lease_costs_one_descriptor(cache):
    fill(cache, "a")
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        cache.lease("a").close()
        cache.lease("b")
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_the_folder_is_for_its_owner_alone(cache, tmp_path):
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0
