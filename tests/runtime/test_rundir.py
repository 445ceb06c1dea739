import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from weft.runtime import rundir, runs
from weft.runtime.config import ConfigError


@pytest.fixture(autouse=True)
def base(monkeypatch):
    """A place for this test's runs alone, not too deep for a socket's path."""
    with tempfile.TemporaryDirectory() as place:
        base = Path(place, "weft")
        monkeypatch.setattr(runs, "bases", lambda: [base])
        yield base


def test_a_run_directory_is_private_and_short_enough_for_sockets(base):
    run = rundir.create()
    assert run.path.parent == base
    assert run.path.stat().st_mode & 0o777 == 0o700
    assert base.stat().st_mode & 0o777 == 0o700
    assert len(run.path.name) <= 16
    run.remove()
    assert not run.path.exists()


def test_what_a_dead_run_left_is_removed_by_the_next(base):
    dead, alive = rundir.create(), rundir.create()
    (dead.path / "scheduler.sock").touch()
    os.close(dead.lock_fd)  # as the end of its process does
    run = rundir.create()
    assert not dead.path.exists()
    assert alive.path.exists()
    run.remove()
    alive.remove()


def test_a_directory_whose_making_was_cut_short_is_removed(base):
    rundir.create().remove()
    (base / "run-half").mkdir()
    rundir.create().remove()
    assert not (base / "run-half").exists()


def test_the_lock_lasts_as_long_as_any_process_that_inherited_it(base):
    run = rundir.create()
    heir = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[run.lock_fd]
    )
    os.close(run.lock_fd)
    rundir.create().remove()
    assert run.path.exists()
    heir.communicate(b"\n")
    rundir.create().remove()
    assert not run.path.exists()


def test_the_newest_ready_run_is_found():
    first, second, third = rundir.create(), rundir.create(), rundir.create()
    second.mark_ready()
    time.sleep(0.01)
    first.mark_ready()
    assert runs.newest() == first.path
    first.remove()
    assert runs.newest() == second.path
    second.remove()
    with pytest.raises(runs.NoRun, match="no weft is running"):
        runs.newest()
    third.remove()


def test_a_dead_run_is_not_found():
    run = rundir.create()
    run.mark_ready()
    os.close(run.lock_fd)
    with pytest.raises(runs.NoRun, match="no weft is running"):
        runs.newest()


def test_a_place_that_others_can_enter_is_not_used(base):
    base.mkdir(mode=0o755)
    base.chmod(0o755)
    with pytest.raises(ConfigError, match="no private directory"):
        rundir.create()


def test_a_place_too_deep_for_a_sockets_path_is_not_used(base, monkeypatch):
    deep = base.parent / ("x" * 100)
    monkeypatch.setattr(runs, "bases", lambda: [deep, base])
    run = rundir.create()
    assert run.path.parent == base
    run.remove()


def test_a_place_that_is_a_link_is_not_used(base):
    (base.parent / "elsewhere").mkdir(mode=0o700)
    base.symlink_to(base.parent / "elsewhere")
    with pytest.raises(ConfigError, match="no private directory"):
        rundir.create()
