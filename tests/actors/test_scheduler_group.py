"""A scheduler over several runners of one model."""

import pytest

from tests.actors.scheduler_harness import GREEDY, config
from weft.actors.scheduler.actor import Scheduler
from weft.actors.scheduler.group import agreed
from weft.runtime.actor import Send, Turn
from weft.runtime.messages import (
    Acquire,
    Away,
    DeviceRoom,
    Generate,
    Inspection,
    KeepOnDevice,
    RunnerReady,
    Step,
    StepDone,
)

RUNNERS = ["runner0", "runner1", "runner2"]
TURN = Turn(0, lambda peer: 100)


@pytest.fixture
def scheduler():
    scheduler = Scheduler(config(max_loras_per_batch=2), runners=RUNNERS)
    yield scheduler
    scheduler.check()


def generate():
    return Generate("0" * 32, "c", "a", "base", [5, 6, 7], [], "", 4, 1, [2], GREEDY)


def get_ready(scheduler, pages=(9, 7, 8)):
    for rank in (1, 2, 0):
        scheduler.receive(RUNNERS[rank], RunnerReady(rank, pages[rank], 4, 2, 2), 0)


def test_no_step_is_sent_before_every_runner_is_ready(scheduler):
    scheduler.receive("tokenizer", generate(), 0)
    for rank in (2, 0):
        scheduler.receive(RUNNERS[rank], RunnerReady(rank, 9, 4, 2, 2), 0)
        assert not [send for send in scheduler.advance(TURN) if isinstance(send.message, Step)]
    scheduler.receive("runner1", RunnerReady(1, 9, 4, 2, 2), 0)
    steps = [send for send in scheduler.advance(TURN) if isinstance(send.message, Step)]
    assert [send.to for send in steps] == RUNNERS
    assert len({id(send.message) for send in steps}) == 1


def test_there_are_as_many_pages_as_the_smallest_device_holds(scheduler):
    get_ready(scheduler)
    assert scheduler._counters()["pages"] == 7


def test_an_inspection_visits_every_runner_before_it_goes_on(scheduler):
    get_ready(scheduler)
    inspection = Inspection("c", "i", {})
    for source, to in (("adapters", "runner0"), ("runner0", "runner1"), ("runner1", "runner2")):
        [(target, inspection)] = scheduler.receive(source, inspection, 0)
        assert target == to
    assert scheduler.receive("runner2", inspection, 0) == []
    assert [send.to for send in scheduler.advance(TURN)] == ["detokenizer"]


def test_an_answer_of_any_but_the_first_rank_is_a_bug(scheduler):
    get_ready(scheduler)
    scheduler.receive("tokenizer", generate(), 0)
    scheduler.advance(TURN)
    with pytest.raises(AssertionError, match="runner1 answers"):
        scheduler.receive("runner1", StepDone(0, []), 0)


def test_an_answer_of_a_life_that_is_over_is_ignored(scheduler):
    get_ready(scheduler)
    scheduler.receive("tokenizer", generate(), 0)
    assert scheduler.advance(TURN)
    scheduler.lost("runner1", 0)
    scheduler.check()
    assert scheduler.receive("runner0", StepDone(0, [9]), 0) == []
    assert not scheduler.is_idle


def test_runners_of_two_lives_do_not_compute_together(scheduler):
    get_ready(scheduler)
    for runner in RUNNERS:
        scheduler.lost(runner, 0)
    for rank in (0, 1):
        scheduler.receive(RUNNERS[rank], RunnerReady(rank, 9, 4, 2, 2, epoch=2), 0)
    # One of them dies before the third is ready, and two of the next life are quick.
    scheduler.lost("runner2", 0)
    scheduler.receive("runner2", RunnerReady(2, 9, 4, 2, 2, epoch=3), 0)
    scheduler.receive("tokenizer", generate(), 0)
    assert not scheduler.advance(TURN)[1:]
    for rank in (1, 0):
        scheduler.lost(RUNNERS[rank], 0)
        scheduler.receive(RUNNERS[rank], RunnerReady(rank, 9, 4, 2, 2, epoch=3), 0)
    assert [send.to for send in scheduler.advance(TURN)][-3:] == RUNNERS


def test_the_tokenizer_hears_when_runners_go_and_when_they_are_back(scheduler):
    get_ready(scheduler)
    [(to, away)] = scheduler.lost("runner2", 0)
    assert to == "tokenizer"
    assert away.reason
    assert scheduler.lost("runner0", 0) == scheduler.lost("runner1", 0) == []
    for rank in (0, 1):
        assert scheduler.receive(RUNNERS[rank], RunnerReady(rank, 9, 4, 2, 2, epoch=2), 0) == []
    last = RunnerReady(2, 9, 4, 2, 2, epoch=2)
    assert Send("tokenizer", Away(None)) in scheduler.receive("runner2", last, 0)


def test_what_is_to_stay_on_the_device_is_so_in_the_next_life_too(scheduler):
    get_ready(scheduler)
    scheduler.receive("adapters", KeepOnDevice(["a" * 64]), 0)
    scheduler.lost("runner0", 0)
    scheduler.receive("adapters", KeepOnDevice(["b" * 64]), 0)
    for rank in (0, 1, 2):
        sends = scheduler.receive(RUNNERS[rank], RunnerReady(rank, 9, 4, 2, 2, epoch=2), 0)
    assert DeviceRoom(0, 4, 2) in [send.message for send in sends]
    assert Send("adapters", Acquire("b" * 64)) in scheduler.advance(TURN)


@pytest.mark.parametrize(
    "ready",
    [
        [RunnerReady(0, 9, 4, 2, 2), RunnerReady(1, 9, 8, 2, 2)],
        [RunnerReady(0, 9, 4, 2, 2), RunnerReady(1, 9, 4, 3, 2)],
        [RunnerReady(0, 9, 4, 2, 2), RunnerReady(1, 9, 4, 2, 3)],
        [RunnerReady(1, 9, 4, 2, 2), RunnerReady(0, 9, 4, 2, 2)],
    ],
)
def test_runners_that_disagree_are_a_bug(ready):
    with pytest.raises(AssertionError, match="rank"):
        agreed(ready)
