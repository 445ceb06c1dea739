"""The store over real folders: a bad one is refused, at start or when loaded, and no other."""

import os
import shutil

import msgspec
import pytest

from tests.actors.adapters.folders import BASE, folder, tensors
from tests.sim.files import store_on_disk
from weft.runtime.actor import Turn
from weft.runtime.config import Config
from weft.runtime.messages import Acquire, Acquired, AcquireFailed

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def write(path, files):
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


@pytest.fixture
def good(tmp_path):
    return write(tmp_path / "good", folder(weights=tensors(seed=1)))


@pytest.fixture
def subject(tmp_path):
    """A valid folder for a test to spoil."""
    return write(tmp_path / "subject", folder(weights=tensors(seed=2)))


@pytest.fixture
def opened(tmp_path, good, subject):
    """A function that starts a store over both folders; returns it and its catalog by name."""

    def start():
        adapters = {"subject": str(subject), "good": str(good)}
        config = Config(model="/base", adapters=adapters, max_loras_per_batch=1, max_loaded_loras=2)
        store = store_on_disk(config, BASE, tmp_path / "run")
        [(_, catalog)] = advance(store)
        msgspec.msgpack.encode(catalog)
        return store, {entry.name: entry for entry in catalog.adapters}

    return start


def advance(store):
    sends = store.advance(Turn(0, lambda peer: 9))
    store.check()
    return sends


def acquire(store, digest):
    store.receive("scheduler", Acquire(digest), 0)
    [(_, answer)] = advance(store)
    return answer


def outside(tmp_path, name):
    """A file that is fine but lies elsewhere."""
    path = tmp_path / f"outside-{name}"
    path.write_bytes(folder(weights=tensors(seed=2))[name])
    return path


def link_out(subject, name):
    (subject / name).unlink()
    (subject / name).symlink_to(outside(subject.parent, name))


def pipe(subject, name):
    (subject / name).unlink()
    os.mkfifo(subject / name)


def device(subject, name):
    (subject / name).unlink()
    (subject / name).symlink_to("/dev/zero")


def huge(subject, name):
    os.truncate(subject / name, 2**40)  # sparse


def inner_folder(subject, name):
    (subject / name).unlink()
    (subject / name).mkdir()


def dangling(subject, name):
    (subject / name).unlink()
    (subject / name).symlink_to("nothing")


def round_and_round(subject, name):
    (subject / name).unlink()
    (subject / name).symlink_to(name)


def emptied(subject, name):
    (subject / name).write_bytes(b"")


def gone(subject, name):
    (subject / name).unlink()


SPOILERS = {
    link_out: "a link out of the folder; put the file itself there",
    pipe: "no regular file; put one there",
    device: "a link out of the folder",
    huge: "1099511627776 bytes",
    inner_folder: "Is a directory; check the file",
    dangling: "No such file or directory; check the file",
    round_and_round: "the file",
    emptied: "again",
    gone: "there is none in",
}


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_file_is_refused_by_its_name_and_the_other_adapter_is_served(
    opened, subject, spoil, name
):
    spoil(subject, name)
    store, catalog = opened()
    assert catalog["subject"].refused.startswith(name)
    assert SPOILERS[spoil] in catalog["subject"].refused
    assert catalog["good"].refused is None
    assert isinstance(acquire(store, catalog["good"].digest), Acquired)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_a_file_spoilt_after_the_start_fails_its_own_requests_alone(opened, subject, spoil, name):
    store, catalog = opened()
    assert catalog["subject"].refused is None
    spoil(subject, name)
    failed = acquire(store, catalog["subject"].digest)
    assert isinstance(failed, AcquireFailed)
    assert SPOILERS[spoil] in failed.reason
    assert isinstance(acquire(store, catalog["good"].digest), Acquired)


def test_a_folder_that_is_a_link_is_taken_as_the_folder_it_leads_to(opened, subject):
    moved = subject.rename(subject.with_name("moved"))
    subject.symlink_to(moved)
    _, catalog = opened()
    assert catalog["subject"].refused is None


def test_links_within_a_folder_are_followed_as_in_a_hub_cache(opened, subject):
    (subject / "blobs").mkdir()
    for name in (CONFIG, WEIGHTS):
        (subject / name).rename(subject / "blobs" / name)
        (subject / name).symlink_to(f"blobs/{name}")
    _, catalog = opened()
    assert catalog["subject"].refused is None


def test_a_folder_of_pickled_weights_alone_is_refused_and_not_read(opened, subject):
    (subject / WEIGHTS).rename(subject / "adapter_model.bin")
    os.mkfifo(subject / "pipe")
    _, catalog = opened()
    assert "never read; convert them to adapter_model.safetensors" in catalog["subject"].refused


def test_a_missing_folder_and_a_file_in_its_place_are_refused(opened, subject):
    shutil.rmtree(subject)
    assert "No such file or directory; check the path" in opened()[1]["subject"].refused
    subject.write_bytes(b"")
    assert "Not a directory; check the path" in opened()[1]["subject"].refused


def test_files_beside_the_two_that_count_do_not_matter(opened, subject):
    os.mkfifo(subject / "README.md")
    (subject / "adapter_model.bin").write_bytes(b"not a pickle")
    (subject / os.fsdecode(b"\xff")).write_bytes(b"")
    _, catalog = opened()
    assert catalog["subject"].refused is None


def test_an_adapter_put_back_as_it_was_is_served_again(opened, subject):
    store, catalog = opened()
    digest = catalog["subject"].digest
    content = (subject / WEIGHTS).read_bytes()
    (subject / WEIGHTS).write_bytes(folder(weights=tensors(seed=3))[WEIGHTS])
    failed = acquire(store, digest)
    assert "has changed since it was checked; restart" in failed.reason
    (subject / WEIGHTS).write_bytes(content)
    assert isinstance(acquire(store, digest), Acquired)
