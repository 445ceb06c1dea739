"""What a confined process can still do: each is tried in a process of its own."""

import os
import subprocess
import sys

import pytest

CONFINED = """
import os, resource, signal, socket, sys
import numpy as np
from weft.actors import confine
file = os.open(sys.argv[1] + "/given", os.O_WRONLY | os.O_CREAT)
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
confine.confine(memory_bytes=64 << 20, file_bytes=1 << 20, files=12)
"""

# What is tried, and the error in which it ends.
FORBIDDEN = {
    "open(sys.argv[1] + '/new', 'w')": "PermissionError",
    "open(sys.argv[1] + '/old', 'a')": "PermissionError",
    "os.truncate(sys.argv[1] + '/old', 0)": "PermissionError",
    "os.unlink(sys.argv[1] + '/old')": "PermissionError",
    "os.rename(sys.argv[1] + '/old', sys.argv[1] + '/moved')": "PermissionError",
    "os.mkdir(sys.argv[1] + '/folder')": "PermissionError",
    "os.symlink('old', sys.argv[1] + '/link')": "PermissionError",
    "os.execv('/bin/true', ['true'])": "PermissionError",
    "socket.create_connection(('127.0.0.1', port))": "PermissionError",
    "socket.create_server(('127.0.0.1', 0))": "PermissionError",
    "os.kill(os.getppid(), 0)": "PermissionError",
    "np.ones(100 << 20, np.int8)": "ArrayMemoryError",
    "bytearray(100 << 20)": "MemoryError",
    "[os.dup(0) for _ in range(20)]": "OSError",
    "os.write(file, bytes(1 << 20)) and os.write(file, b'x')": "OSError",
    "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))": "ValueError",
}

_NEED_LANDLOCK = ("PermissionError",)


def run(statements, folder):
    """Run statements in a process that is confined first; return how it ended and what it said."""
    (folder / "old").write_bytes(b"old")
    found = subprocess.run(
        [sys.executable, "-c", f"{CONFINED}\n{statements}", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return found.returncode, found.stdout, found.stderr


def landlock_version():
    import ctypes

    return ctypes.CDLL(None).syscall(444, None, 0, 1)


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_what_is_given_up_is_gone(tmp_path, statement):
    if FORBIDDEN[statement] in _NEED_LANDLOCK and landlock_version() < 6:
        pytest.skip("this kernel's Landlock does not know it")
    code, _, error = run(statement, tmp_path)
    assert code == 1
    assert FORBIDDEN[statement] in error.splitlines()[-1]
    assert (tmp_path / "old").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["given", "old"]


def test_what_is_left_is_reading_computing_and_the_file_that_was_given(tmp_path):
    statements = """
assert open(sys.argv[1] + "/old").read() == "old"
os.write(file, np.arange(3, dtype=np.int8).tobytes())
print(os.listdir(sys.argv[1]), "NoNewPrivs:\\t1" in open("/proc/self/status").read())
"""
    code, said, error = run(statements, tmp_path)
    assert (code, error) == (0, "")
    assert said.endswith("True\n")
    assert (tmp_path / "given").read_bytes() == b"\x00\x01\x02"


def test_computing_too_long_ends_the_process(tmp_path):
    code, _, _ = run("confine.allow_processor_time(0)\nwhile True: pass", tmp_path)
    assert code == -24  # SIGXCPU


@pytest.mark.slow
def test_processor_time_is_counted_from_each_allowance(tmp_path):
    statements = """
import time
def spend(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
for _ in range(4):
    confine.allow_processor_time(1)
    spend(0.6)
"""
    assert run(statements, tmp_path)[0] == 0


WRITING_INTO_ONE = """
import os, socket, sys
from pathlib import Path
from weft.actors import confine
inside = Path(sys.argv[1], "inside")
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
confine.write_only_into(inside, file_bytes=1 << 20)
"""


def run_writing(statements, folder):
    (folder / "inside" / "deeper").mkdir(parents=True)
    (folder / "old").write_bytes(b"old")
    found = subprocess.run(
        [sys.executable, "-c", f"{WRITING_INTO_ONE}\n{statements}", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return found.returncode, found.stderr


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("open(sys.argv[1] + '/new', 'w')", "PermissionError"),
        ("open(sys.argv[1] + '/old', 'a')", "PermissionError"),
        ("os.unlink(sys.argv[1] + '/old')", "PermissionError"),
        ("os.rename(sys.argv[1] + '/old', inside / 'stolen')", "PermissionError"),
        ("(inside / 'large').write_bytes(bytes((1 << 20) + 1))", "OSError"),
    ],
)
def test_who_may_write_into_one_folder_can_write_nowhere_else(tmp_path, statement, error):
    if error == "PermissionError" and landlock_version() < 3:
        pytest.skip("this kernel's Landlock does not know it")
    code, said = run_writing(statement, tmp_path)
    assert code == 1
    assert error in said.splitlines()[-1]
    assert (tmp_path / "old").read_bytes() == b"old"


def test_who_may_write_into_one_folder_can_do_there_what_it_wants_and_reach_others(tmp_path):
    statements = """
(inside / "file").write_bytes(bytes(1 << 20))
(inside / "file").rename(inside / "deeper" / "file")
(inside / "deeper").rename(inside / "other")
assert open(sys.argv[1] + "/old").read() == "old"
open(os.devnull, "w").write("x")
socket.create_connection(("127.0.0.1", port)).close()
"""
    assert run_writing(statements, tmp_path) == (0, "")
    assert (tmp_path / "inside" / "other" / "file").stat().st_size == 1 << 20
