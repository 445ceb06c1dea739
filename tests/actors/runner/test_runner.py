import pytest

from tests.actors.scheduler_harness import GREEDY
from tests.sim.fake_engine import FakeEngine
from weft.actors.runner.actor import Runner
from weft.runtime.actor import Send, Turn
from weft.runtime.messages import Chunk, Inspection, Join, RunnerReady, Step

TURN = Turn(0, lambda peer: 100)


@pytest.fixture
def runner():
    runner = Runner(FakeEngine(pages=8, page_tokens=4, slots=2, rows=4), role="runner0")
    yield runner
    runner.check()


def first_step():
    joins = [Join(0, [], 0, [0, 1], GREEDY, 0, 2, None)]
    return Step(0, joins=joins, chunks=[Chunk(0, 0, [5, 6], True)])


def test_it_says_once_what_its_device_holds(runner):
    assert runner.advance(TURN) == [Send("scheduler", RunnerReady(0, 8, 4, 2, 2))]
    assert runner.advance(TURN) == []


def test_steps_are_answered_one_a_turn_in_their_order(runner):
    runner.advance(TURN)
    for step in (first_step(), Step(1), Step(2)):
        assert runner.receive("scheduler", step, 0) == []
    answers = []
    while not runner.is_idle:
        [(to, done)] = runner.advance(TURN)
        assert to == "scheduler"
        answers.append(done)
    assert [done.step for done in answers] == [0, 1, 2]
    assert [len(done.tokens) for done in answers] == [1, 1, 1]


class SlowEngine(FakeEngine):
    """Its steps are done when the test says so."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.launched = []

    def launch(self, step):
        self.launched.append(Slow(self.execute(step)))
        return self.launched[-1]


class Slow:
    def __init__(self, answer):
        self.is_done = False
        self._answer = answer

    def collect(self):
        assert self.is_done
        return self._answer


def test_a_step_is_launched_before_the_one_before_is_answered():
    engine = SlowEngine(pages=8, page_tokens=4, slots=2, rows=4)
    runner = Runner(engine, role="runner0")
    runner.advance(TURN)
    for step in (first_step(), Step(1), Step(2)):
        runner.receive("scheduler", step, 0)
    assert runner.advance(TURN) is None  # it must be asked again: no message tells of the end
    assert len(engine.launched) == 2
    for number in (0, 1, 2):
        assert not runner.is_idle
        engine.launched[number].is_done = True
        [(_, done)] = runner.advance(TURN)
        assert done.step == number
        assert runner.advance(TURN) == (None if number < 2 else [])
    assert runner.is_idle


def test_an_inspection_goes_back_with_the_runners_own_section(runner):
    inspection = Inspection("client", "label", {"scheduler": {"requests": 1}})
    [(to, answer)] = runner.receive("scheduler", inspection, 0)
    assert to == "scheduler"
    assert (answer.client, answer.label) == ("client", "label")
    assert answer.sections == {"scheduler": {"requests": 1}, "runner0": {"rows": 0}}


def test_a_drain_still_answers_what_has_come(runner):
    runner.advance(TURN)
    runner.receive("scheduler", first_step(), 0)
    runner.drain()
    assert not runner.is_idle
    assert [done.step for _, done in runner.advance(TURN)] == [0]
    assert runner.is_idle


def test_only_the_first_rank_answers_and_the_others_execute_everything_that_has_come():
    engine = FakeEngine(pages=8, page_tokens=4, slots=2, rows=4, rank=1)
    runner = Runner(engine, role="runner1")
    assert runner.advance(TURN) == [Send("scheduler", RunnerReady(1, 8, 4, 2, 2))]
    for step in (first_step(), Step(1), Step(2)):
        runner.receive("scheduler", step, 0)
    assert runner.advance(TURN) == []
    assert runner.is_idle
    assert engine._next_step == 3
