"""Files on a real disk, where folders are not what they say."""

import os

import pytest

from weft.actors.adapters.files import FileError, LocalFiles

FILES = LocalFiles()


def test_a_file_is_read_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    assert FILES.names(str(tmp_path)) == ["a"]
    assert FILES.read(str(tmp_path), "a", bytes_max=7) == b"content"


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    with pytest.raises(FileError, match="7 bytes, more than such a file"):
        FILES.read(str(tmp_path), "a", bytes_max=6)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    inside = tmp_path / "adapter"
    inside.mkdir()
    (inside / "out").symlink_to(tmp_path / "secret")
    (inside / "round").symlink_to(inside / "round")
    with pytest.raises(FileError, match="a link out of the folder"):
        FILES.read(str(inside), "out", bytes_max=9)
    with pytest.raises(FileError):
        FILES.read(str(inside), "round", bytes_max=9)


def test_a_link_within_the_folder_is(tmp_path):
    (tmp_path / "blob").write_bytes(b"x")
    (tmp_path / "name").symlink_to("blob")
    assert FILES.read(str(tmp_path), "name", bytes_max=9) == b"x"


def test_a_pipe_and_a_folder_are_no_files_and_nobody_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        before = os.listdir("/proc/self/fd")
        with pytest.raises(FileError, match=r"no regular file|Is a directory"):
            FILES.read(str(tmp_path), name, bytes_max=9)
        assert os.listdir("/proc/self/fd") == before


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(FileError, match="No such file"):
        FILES.names(str(tmp_path / "nowhere"))
    with pytest.raises(FileError, match="No such file"):
        FILES.read(str(tmp_path), "nothing", bytes_max=9)


def test_a_file_is_moved_as_a_whole_or_is_gone(tmp_path):
    path, source = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"before")
    source.write_bytes(b"content")
    FILES.move(str(source), str(path))
    assert path.read_bytes() == b"content"
    source.write_bytes(b"more")
    with pytest.raises(FileError, match="No such file"):
        FILES.move(str(source), str(tmp_path / "nowhere" / "a"))
    assert os.listdir(tmp_path) == ["a"]
    FILES.remove(str(path))
    FILES.remove(str(path))
    assert not path.exists()


def test_a_file_that_holds_more_than_it_says_is_not_believed():
    """As one that grows while it is read; what the kernel makes up says that it is empty."""
    assert os.stat("/proc/self/status").st_size == 0
    with pytest.raises(FileError, match="it changed while it was read; try again"):
        FILES.read("/proc/self", "status", bytes_max=10**6)
