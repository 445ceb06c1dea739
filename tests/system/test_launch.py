import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.system.pipeline import LONG_S, TABLE
from tests.system.runs import TIMEOUT_S, Run
from weft.runtime import transport
from weft.runtime.actor import Send
from weft.runtime.endpoint import Endpoint, Mail
from weft.runtime.messages import ListModels
from weft.runtime.topology import CLIENT
from weft.runtime.transport import ZmqMailbox

pytestmark = pytest.mark.system

ROLES = ["door", "front", "worker"]


@pytest.fixture
def place():
    """A directory for this test's runs alone, not too deep for a socket's path."""
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


@pytest.fixture
def start(place):
    runs = []

    def start(stderr=subprocess.PIPE, **options):
        arguments = [f"{name}={value}" for name, value in options.items()]
        runs.append(Run(place, ["tests.system.pipeline", *arguments], stderr))
        return runs[-1]

    yield start
    for run in runs:
        run.popen.kill()
        run.popen.communicate()


@pytest.fixture
def ask(monkeypatch):
    """A function that asks a run something as a client and returns a function that waits."""
    boxes = []
    monkeypatch.setattr(transport, "LINGER_MS", 0)  # most runs are gone when the client closes

    def ask(run, label):
        box = ZmqMailbox(Endpoint(CLIENT, TABLE, identity=f"t{len(boxes)}"), TABLE, run.run_dir)
        boxes.append(box)
        box.send(Send("front", ListModels(label)))
        deadline = time.monotonic() + TIMEOUT_S
        events = []  # the answer may come together with the Welcome
        while not box.is_open:
            assert time.monotonic() < deadline
            events += box.take(1, 0.01)

        def answer():
            while not events:
                assert time.monotonic() < deadline
                events.extend(box.take(1, 0.1))
            event = events.pop(0)
            assert isinstance(event, Mail)
            return event.message.label

        return answer

    yield ask
    for box in boxes:
        box.close()


def test_a_run_starts_serves_and_drains(start, ask):
    run = start()
    said = run.serve()
    assert "http://door" in said
    assert run.run_dir.is_dir()
    assert sorted(run.processes()) == [*ROLES[:2], "janitor", "worker"]
    assert ask(run, "quick")() == "quick"
    run.stop()
    code, error = run.end()
    assert code == 0, error
    assert "drained" in error
    run.assert_nothing_is_left()


def test_a_drain_lets_work_in_progress_finish(start, ask):
    run = start()
    run.serve()
    answer = ask(run, "slow")
    run.stop(signal.SIGINT)
    assert answer() == "slow"
    assert run.end()[0] == 0
    run.assert_nothing_is_left()


def test_a_second_signal_stops_at_once(start, ask):
    run = start(served_model_name="stubborn", drain_timeout_s=3600)
    run.serve()
    ask(run, "slow")
    run.stop()
    while run.popen.poll() is None:  # a signal that comes too soon after the first is the same
        time.sleep(0.4)
        run.stop()
    code, error = run.end()
    assert code == 1
    assert "a second signal" in error
    run.assert_nothing_is_left()


def test_a_signal_that_comes_twice_at_once_is_one(start, ask):
    run = start()
    run.serve()
    answer = ask(run, "slow")
    run.stop(signal.SIGSTOP)  # both are there when it looks
    run.stop(signal.SIGTERM)
    run.stop(signal.SIGINT)
    run.stop(signal.SIGCONT)
    assert answer() == "slow"
    assert run.end()[0] == 0


def test_a_drain_ends_at_its_timeout(start, ask):
    run = start(served_model_name="stubborn", drain_timeout_s=0)
    run.serve()
    run.stop()
    code, error = run.end()
    assert code == 1
    assert "drain_timeout_s is over; what worker still had is lost" in error
    run.assert_nothing_is_left()


def test_a_killed_launcher_leaves_no_process_and_no_file(start, ask):
    run = start(served_model_name="stubborn")
    run.serve()
    answer = ask(run, "quick")
    assert answer() == "quick"
    run.stop(signal.SIGKILL)
    run.end()
    run.assert_nothing_is_left()


def test_processes_die_with_their_launcher_even_without_a_janitor(start):
    run = start()
    run.serve()
    os.kill(run.processes()["janitor"], signal.SIGKILL)
    run.stop(signal.SIGKILL)
    deadline = time.monotonic() + TIMEOUT_S
    while run.processes():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_janitor_that_dies_lives_again_and_still_cleans_up(start, ask):
    run = start()
    run.serve()
    before = run.processes()
    for _ in range(2):
        pid = run.processes()["janitor"]
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + TIMEOUT_S
        while run.processes().get("janitor", pid) == pid:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    after = run.processes()
    del before["janitor"], after["janitor"]
    assert before == after
    os.kill(run.processes()["worker"], signal.SIGKILL)  # whoever is told of that is there
    assert ask(run, "quick")() == "quick"
    run.stop(signal.SIGKILL)
    _, error = run.end()
    assert error.count("the janitor has died; starting it again") == 2
    run.assert_nothing_is_left()


def test_a_launcher_killed_while_starting_leaves_nothing_either(start, place):
    for delay_s in (0.05, 0.15, 0.25, 0.35):
        run = start()
        time.sleep(delay_s)
        found = list(place.glob("weft/run-*"))
        run.run_dir = found[0] if found else place / "none"
        run.stop(signal.SIGKILL)
        run.end()
        run.assert_nothing_is_left()


@pytest.mark.parametrize("role", ["door", "front"])
def test_a_process_that_is_killed_stops_the_run_and_is_named(start, role):
    run = start()
    run.serve()
    os.kill(run.processes()[role], signal.SIGKILL)
    code, error = run.end()
    assert code == 1
    assert f"weft: error: the process {role} was killed by SIGKILL" in error
    run.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("die", "the process worker ended with 1: AssertionError: asked to die"),
        ("leave", "the process worker ended with 0"),
        ("stop", "the process worker has not got on for 0.4 s"),
        ("hang", "the process worker has not got on for 0.4 s"),
    ],
)
def test_who_computes_lives_again_and_answers_what_was_asked(start, ask, label, says):
    run = start(watchdog_timeout_s=0.4)
    run.serve()
    before = run.processes()
    answer = ask(run, label)
    assert answer() == label
    after = run.processes()
    assert before.pop("worker") != after.pop("worker")
    assert before == after
    assert ask(run, "quick")() == "quick"
    run.stop()
    code, error = run.end()
    assert code == 0
    assert f"{says}; starting worker again" in error
    assert "worker: back after" in error
    run.assert_nothing_is_left()


def test_a_worker_that_is_killed_again_and_again_comes_back_each_time(start, ask):
    run = start()
    run.serve()
    for _ in range(3):
        pid = run.processes()["worker"]
        os.kill(pid, signal.SIGKILL)
        answer = ask(run, "quick")
        assert answer() == "quick"
        assert run.processes()["worker"] != pid
    run.stop()
    code, error = run.end()
    assert code == 0
    assert error.count("the process worker was killed by SIGKILL; starting worker again") == 3


def test_a_worker_that_is_slow_but_not_stuck_is_left_alone(start, ask):
    run = start(watchdog_timeout_s=0.4)
    run.serve()
    pid = run.processes()["worker"]
    assert ask(run, "slow")() == "slow"
    time.sleep(0.6)  # with nothing to do
    assert run.processes()["worker"] == pid


def test_who_cannot_live_again_ends_the_run_with_the_reason(start):
    run = start(served_model_name="once")
    run.serve()
    os.kill(run.processes()["worker"], signal.SIGKILL)
    code, error = run.end()
    assert code == 1
    assert error.endswith(
        "weft: error: worker did not become ready in 3 lives; the last time: the process worker "
        "ended with 1: RuntimeError: a bug in loading\n"
    )
    run.assert_nothing_is_left()


def test_a_start_that_hangs_ends_the_run_and_says_where(start):
    run = start(served_model_name="stalled", loading_timeout_s=2.0)
    code, error = run.end()
    assert code == 1
    assert error.endswith(
        "weft: error: the process worker has not got on for 2 s while it was starting (loading "
        "weights 0%)\n"
    )
    run.assert_nothing_is_left()


def test_a_start_may_take_as_long_as_it_gets_on(start, ask):
    run = start(served_model_name="long", loading_timeout_s=0.8 * LONG_S)
    run.serve()
    assert ask(run, "quick")() == "quick"


def test_a_next_life_that_hangs_while_it_starts_is_tried_again_and_then_given_up(start):
    run = start(served_model_name="stalled later", loading_timeout_s=2.0)
    run.serve()
    os.kill(run.processes()["worker"], signal.SIGKILL)
    code, error = run.end()
    assert code == 1
    stuck = "the process worker has not got on for 2 s while it was starting (loading weights 0%)"
    assert error.count(f"{stuck}; starting worker again") == 3
    assert error.endswith(
        f"weft: error: worker did not become ready in 3 lives; the last time: {stuck}\n"
    )
    run.assert_nothing_is_left()


def test_a_group_that_cannot_live_again_is_given_up_and_the_others_go_on(start, ask, place):
    log = place / "log"
    with log.open("w") as file:
        run = start(served_model_name="lame", stderr=file)
    run.serve()
    os.kill(run.processes()["other"], signal.SIGKILL)
    deadline = time.monotonic() + 3 * TIMEOUT_S
    while "the run goes on without it" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    assert "other did not become ready in 3 lives; the last time: the process other" in (
        log.read_text()
    )
    assert ask(run, "die")() == "die"  # the worker lives again
    run.stop()
    assert run.end()[0] == 0, log.read_text()
    run.assert_nothing_is_left()


def test_a_drain_waits_for_a_worker_that_work_is_waiting_for(start, ask):
    run = start(served_model_name="waiting")
    run.serve()
    pid = run.processes()["worker"]
    os.kill(pid, signal.SIGKILL)
    while run.processes().get("worker", pid) == pid:
        time.sleep(0.01)
    answer = ask(run, "quick")
    run.stop()
    (run.run_dir / "go").touch()
    assert answer() == "quick"
    code, error = run.end()
    assert code == 0, error
    run.assert_nothing_is_left()


def test_a_drain_does_not_wait_for_a_worker_that_nobody_waits_for(start):
    run = start(served_model_name="waiting")
    run.serve()
    os.kill(run.processes()["worker"], signal.SIGKILL)
    run.stop()
    code, error = run.end()
    assert code == 0, error
    run.assert_nothing_is_left()


def test_a_launcher_killed_while_a_worker_comes_back_leaves_nothing(start):
    run = start(served_model_name="waiting")
    run.serve()
    pid = run.processes()["worker"]
    os.kill(pid, signal.SIGKILL)
    while run.processes().get("worker", pid) == pid:
        time.sleep(0.01)
    run.stop(signal.SIGKILL)
    run.end()
    run.assert_nothing_is_left()


def test_what_the_user_can_mend_is_one_line_without_a_traceback(start):
    run = start(served_model_name="refused")
    code, error = run.end()
    assert code == 2
    said = [line for line in error.splitlines() if not line.startswith("worker: loading")]
    assert said == ["weft: error: front: model: no such thing; name another"]


def test_a_bug_while_starting_names_the_process(start):
    code, error = start(served_model_name="broken").end()
    assert code == 1
    assert error.endswith("the process worker ended with 1: RuntimeError: a bug in loading\n")


def test_a_signal_while_starting_stops_at_once(start, place):
    run = start()
    while not list(place.glob("weft/run-*")):
        time.sleep(0.005)
    run.stop()
    assert run.end()[0] == 1
    assert not list(place.glob("weft/run-*"))


def test_a_port_in_use_is_refused_before_anything_is_loaded(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, error = start(port=port).end()
    assert code == 1
    assert error == (
        f"weft: error: cannot listen on 127.0.0.1, port {port}: Address already in use; "
        f"choose another --port\n"
    )


def test_two_runs_live_side_by_side(start, ask):
    first, second = start(), start()
    first.serve()
    second.serve()
    assert first.run_dir != second.run_dir
    assert ask(first, "a")() == "a"
    first.stop()
    assert first.end()[0] == 0
    assert ask(second, "b")() == "b"
