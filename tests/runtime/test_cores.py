"""How cores are divided among the runners of a run."""

import os
import subprocess
import sys

import pytest

from weft.runtime import cores, runs
from weft.runtime.cores import Share, shares


def test_runners_get_neighbouring_cores_of_their_own():
    divided = shares(2, None, [0, 4, 1, 5, 2], is_ours=True)
    assert divided == [Share(2, frozenset({0, 4})), Share(2, frozenset({1, 5}))]


@pytest.mark.parametrize(
    ("count", "threads", "is_ours", "expected"),
    [
        (1, None, True, 4),  # a single runner has every core anyway
        (2, None, False, 2),
        (2, 3, True, 3),
        (8, None, True, 1),
    ],
)
def test_runners_are_held_to_no_core_if_that_could_harm(count, threads, is_ours, expected):
    divided = shares(count, threads, [0, 1, 2, 3], is_ours=is_ours)
    assert divided == [Share(expected, None)] * count


def test_without_runners_there_is_nothing_to_divide():
    assert shares(0, None, [0, 1], is_ours=True) == []


def test_every_usable_processor_is_listed_once():
    assert sorted(cores.usable()) == sorted(os.sched_getaffinity(0))


def test_a_machine_is_shared_when_some_of_it_was_set_aside(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "bases", lambda: [tmp_path])
    monkeypatch.setattr(os, "cpu_count", lambda: len(os.sched_getaffinity(0)))
    assert cores.is_machine_ours(tmp_path / "run-1")
    monkeypatch.setattr(os, "cpu_count", lambda: len(os.sched_getaffinity(0)) + 1)
    assert not cores.is_machine_ours(tmp_path / "run-1")


def test_a_machine_is_shared_while_another_run_lives(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "bases", lambda: [tmp_path])
    monkeypatch.setattr(os, "cpu_count", lambda: len(os.sched_getaffinity(0)))
    living = {tmp_path / "run-1", tmp_path / "run-2"}
    for path in living | {tmp_path / "run-3"}:
        path.mkdir()
    monkeypatch.setattr(runs, "is_dead", lambda path: path not in living)
    assert not cores.is_machine_ours(tmp_path / "run-1")
    living.remove(tmp_path / "run-2")
    assert cores.is_machine_ours(tmp_path / "run-1")


def test_a_process_is_held_to_its_cores_and_one_that_has_ended_is_no_error():
    one = min(os.sched_getaffinity(0))
    sleeping = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    cores.pin(sleeping.pid, Share(1, frozenset({one})))
    assert os.sched_getaffinity(sleeping.pid) == {one}
    sleeping.communicate(b"\n")
    cores.pin(sleeping.pid, Share(1, frozenset({one})))
