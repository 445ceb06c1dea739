"""Adapters at URLs, over the file system that fsspec keeps in memory."""

import fsspec
import pytest

from tests.actors.adapters.folders import folder, tensors
from weft.actors.adapters.errors import BadAdapter, Unavailable
from weft.actors.adapters.sources.disk_cache import DiskCache
from weft.actors.adapters.sources.download import PAUSES_S, fetch
from weft.actors.adapters.sources.origin import limits
from weft.actors.adapters.sources.urls import Urls
from weft.runtime.sources import Remote

LIMITS = limits(100_000)
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def bucket():
    """What lies in memory://bucket, which a test may change."""
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path, 1_000_000)


def put(bucket, name, files):
    for file, content in files.items():
        bucket.pipe(f"/bucket/{name}/{file}", content)


def get(cache, name, *, revision=None, sleep=None, origin=None):
    def never(seconds):
        raise AssertionError(f"a pause of {seconds} s")

    source = Remote("memory", f"bucket/{name}", revision)
    return fetch(
        source, origin or Urls(LIMITS), cache, LIMITS, may_be_old=False, sleep=sleep or never
    )


def content(cache, root, name=WEIGHTS):
    lease = cache.lease(root)
    found = (lease.folder / name).read_bytes()
    lease.close()
    return found


def test_a_folder_is_downloaded_and_its_version_noted(bucket, cache):
    files = folder()
    put(bucket, "legal", {**files, "README.md": b"x", "generation_config.json": b"{}"})
    fetched = get(cache, "legal")
    assert fetched.root.startswith("memory://bucket/legal#version=")
    assert fetched.size_bytes == sum(map(len, files.values())) + 2
    assert content(cache, fetched.root) == files[WEIGHTS]
    lease = cache.lease(fetched.root)
    names = {path.name for path in lease.folder.iterdir()}
    lease.close()
    assert names == {*files, "generation_config.json", "entry.json"}


def test_what_has_not_changed_is_not_downloaded_again(bucket, cache):
    put(bucket, "legal", folder())
    first = get(cache, "legal")
    again = get(cache, "legal")
    assert (again.root, again.size_bytes) == (first.root, 0)


def test_what_has_changed_has_another_version(bucket, cache):
    put(bucket, "legal", folder(weights=tensors(seed=1)))
    first = get(cache, "legal")
    changed = folder(weights=tensors(seed=2, rank=2))
    put(bucket, "legal", changed)
    second = get(cache, "legal")
    assert second.root != first.root
    assert content(cache, second.root) == changed[WEIGHTS]
    version = first.root.rpartition("=")[2]
    with pytest.raises(BadAdapter, match="has changed since it was loaded; load it again"):
        get(cache, "legal", revision=version)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"adapter_config.json": None}, "adapter_config.json: there is none"),
        ({WEIGHTS: None}, "adapter_model.safetensors: there is none"),
        ({WEIGHTS: None, "adapter_model.bin": b"x"}, "pickled weights can run code"),
        ({WEIGHTS: bytes(100_001)}, "adapter_model.safetensors: 100001 bytes"),
        ({"generation_config.json": bytes(2_000_000)}, "generation_config.json: 2000000 bytes"),
    ],
)
def test_what_is_no_adapter_is_refused_before_it_is_downloaded(bucket, cache, change, words):
    files = {name: it for name, it in {**folder(), **change}.items() if it is not None}
    put(bucket, "legal", files)
    with pytest.raises(BadAdapter, match=words):
        get(cache, "legal")


class Wrong(Urls):
    """A file system whose sizes are not those of what comes, so many times."""

    def __init__(self, times, *, size=None):
        super().__init__(LIMITS)
        self.times, self.size = times, size

    def find(self, source):
        found = super().find(source)
        if self.times == 0:
            return found
        self.times -= 1
        return found._replace(files=tuple(f._replace(size_bytes=self.size) for f in found.files))


def test_a_wrong_size_is_tried_again_a_few_times(bucket, cache):
    put(bucket, "legal", folder())
    pauses = []
    fetched = get(cache, "legal", sleep=pauses.append, origin=Wrong(2, size=7))
    assert cache.lease(fetched.root) is not None
    assert pauses == list(PAUSES_S[:2])
    put(bucket, "other", folder())
    with pytest.raises(Unavailable, match="bytes instead of 7; try again"):
        get(cache, "other", sleep=pauses.append, origin=Wrong(99, size=7))
    assert pauses[2:] == list(PAUSES_S)
    assert list((cache._folder / "partial").iterdir()) == []


def test_a_size_that_is_not_told_is_found_out_and_counted_as_the_largest(bucket, tmp_path):
    put(bucket, "legal", folder())
    fetched = get(DiskCache(tmp_path / "a", 2**23), "legal", origin=Wrong(1))
    assert fetched.size_bytes > 0
    with pytest.raises(BadAdapter, match="more than the whole of adapter_cache"):
        get(DiskCache(tmp_path / "b", 2**16), "legal", origin=Wrong(1))


class Surprising(Urls):
    """A file system that does not tell how large the weights are, which are too large."""

    def find(self, source):
        found = super().find(source)
        fsspec.filesystem("memory").pipe(f"/{source.path}/{WEIGHTS}", bytes(100_001))
        files = tuple(file._replace(size_bytes=None) for file in found.files)
        return found._replace(files=files)


def test_a_size_that_turns_out_to_be_too_large_is_refused(bucket, cache, tmp_path):
    put(bucket, "legal", folder())
    with pytest.raises(BadAdapter, match="100001 bytes in memory"):
        get(DiskCache(tmp_path, 2**23), "legal", origin=Surprising(LIMITS))
    assert list((tmp_path / "entries").iterdir()) == []


def test_a_missing_package_is_named_with_the_way_to_install_it(cache, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(BadAdapter, match=r"pip install 'weft\[s3\]'"):
        fetch(Remote("s3", "bucket/a"), Urls(LIMITS), cache, LIMITS, may_be_old=True, sleep=print)
    with pytest.raises(BadAdapter, match="Protocol not known: nonsense"):
        fetch(Remote("nonsense", "a"), Urls(LIMITS), cache, LIMITS, may_be_old=True, sleep=print)
