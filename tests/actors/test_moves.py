"""What a scheduler says and does when requests go from it to another, or come."""

import pytest

from tests.actors.scheduler_harness import GREEDY, config, uses
from tests.sim.fake_engine import EOS, FakeEngine, generate
from weft.actors.scheduler.actor import Scheduler
from weft.runtime.actor import Turn
from weft.runtime.messages import (
    Abort,
    Acquire,
    Acquired,
    Away,
    Begin,
    Generate,
    HandOver,
    Mark,
    Marked,
    Progress,
    Reject,
    Resume,
    Retire,
    Retired,
    Sampled,
    Settled,
    Step,
    StopFound,
    Unread,
    Yield,
    Yielded,
)
from weft.runtime.replicas import Replica

PROMPT = [20, 21, 22]


class Desk:
    """A scheduler of two, with a runner that answers when told to; all that it says is kept."""

    now_ns = 0  # for both

    def __init__(self, index=0, **options):
        replica = Replica(index, 2)
        self.runner = replica.runner(0)
        self.scheduler = Scheduler(config(**options), runners=[self.runner], replica=replica)
        self.said = []
        self.steps = []
        self.begin()

    def begin(self):
        """A life of the runner begins."""
        self.engine = FakeEngine(pages=64, page_tokens=4, slots=8, rows=8)
        self.hear(self.runner, self.engine.ready())

    def lose(self):
        self.steps.clear()
        self._note(self.scheduler.lost(self.runner, self.now_ns))
        self.scheduler.check()

    def hear(self, source, message):
        Desk.now_ns += 1000
        self._note(self.scheduler.receive(source, message, self.now_ns))
        self.scheduler.check()

    def turn(self, room=100):
        self._note(self.scheduler.advance(Turn(self.now_ns, lambda peer: room)))
        self.scheduler.check()

    def run(self, steps):
        for _ in range(steps):
            self.turn()
            if self.steps:
                self.hear(self.runner, self.engine.execute(self.steps.pop(0)))
        self.turn()

    def take(self, kind):
        """What has been said of a kind, which is forgotten."""
        found = [message for _, message in self.said if isinstance(message, kind)]
        self.said = [send for send in self.said if not isinstance(send.message, kind)]
        return found

    def ask(self, label, *, adapter=None, **options):
        fields = {"choices": 1, "max_tokens": 12} | options
        request = Generate(
            f"{label:>032}", "ann", label, "base", PROMPT, uses(adapter), "",
            stop_token_ids=[EOS], sampling=GREEDY, **fields,
        )  # fmt: skip
        self.hear("router", request)
        return request

    def hand_over(self, *requests, with_suspects=False):
        """Have them leave, as far as they do."""
        self.hear("router", Yield([request.request_id for request in requests], with_suspects))
        self.turn()
        [mark] = self.take(Mark)
        self.hear("detokenizer", Marked(mark.number))
        self.turn()
        assert len(self.take(Yielded)) == 1
        return self.take(HandOver)

    def _note(self, sends):
        for send in sends:
            if isinstance(send.message, Step):
                self.steps.append(send.message)
            elif isinstance(send.message, Acquire):
                self.hear("adapters", Acquired(send.message.digest, "/file", 8, 1, 1))
            else:
                self.said.append(send)


def tokens_of(desk, sequence):
    return [
        token
        for sampled in desk.take(Sampled)
        for number, token in zip(sampled.sequences, sampled.tokens, strict=True)
        if number == sequence
    ]


def test_a_request_goes_on_at_the_other_with_its_number_and_its_next_token():
    one, other = Desk(), Desk(1)
    request = one.ask("r")
    one.run(4)
    [begun] = one.take(Begin)
    shown = tokens_of(one, begun.first_sequence)
    one.lose()
    [handed] = one.hand_over(request)
    assert handed.choices[0].output == shown != []
    assert not one.scheduler._requests
    other.hear("router", handed)
    other.run(15)
    shown += tokens_of(other, begun.first_sequence)
    expected = generate(None, PROMPT, max_tokens=12)
    assert shown == [token for token in expected if token != EOS]
    assert not other.take(Begin)
    assert other.scheduler.is_idle


def test_nothing_is_computed_of_a_request_that_is_to_leave():
    desk = Desk()
    request = desk.ask("r")
    desk.run(3)
    desk.lose()
    desk.hear("router", Yield([request.request_id]))
    desk.begin()
    desk.take(Sampled)
    desk.run(5)
    assert not desk.steps
    assert not desk.take(Sampled)
    [mark] = desk.take(Mark)
    desk.hear("detokenizer", Marked(mark.number))
    desk.turn()
    assert len(desk.take(HandOver)) == 1


def test_with_runners_only_those_leave_that_have_not_begun():
    desk = Desk(max_num_seqs=1)
    first, second, third = (desk.ask(label) for label in "abc")
    desk.run(2)
    handed = desk.hand_over(first, third)
    assert [each.generate for each in handed] == [third]
    assert {r.generate.label for r in desk.scheduler._requests} == {"a", "b"}
    assert second.label == "b"


def test_what_ends_a_request_that_is_to_leave_ends_it_there():
    for end in ("stop", "abort"):
        desk = Desk()
        request = desk.ask("r")
        desk.run(3)
        [begun] = desk.take(Begin)
        desk.lose()
        desk.hear("router", Yield([request.request_id]))
        if end == "stop":
            desk.hear("detokenizer", StopFound(begun.first_sequence, 2))
        else:
            desk.hear("router", Abort("ann", "r"))
        desk.turn()
        [mark] = desk.take(Mark)
        desk.hear("detokenizer", Marked(mark.number))
        desk.turn()
        assert not desk.take(HandOver)
        [ended] = [e for sampled in desk.take(Sampled) for e in sampled.ends]
        assert ended.reason == ("stop" if end == "stop" else "cancelled")
        assert request.request_id in [i for p in desk.take(Progress) for i in p.ended]


def test_those_that_ran_come_first_and_in_the_order_of_before():
    one, other = Desk(), Desk(1, max_num_seqs=1)
    requests = [one.ask(label, max_tokens=30) for label in "abc"]
    one.run(3)
    requests.append(one.ask("never"))
    one.lose()
    other.ask("own")
    other.run(2)
    other.ask("waits")
    for handed in one.hand_over(*requests):
        other.hear("router", handed)
    waiting = other.scheduler._waiting.in_order(lambda sequence: 1)
    order = [sequence.request.generate.label for sequence in waiting]
    assert order == ["a", "b", "c", "never", "waits"]  # who came first, of those that never ran


def test_a_request_of_which_only_a_later_choice_is_left_is_computed():
    one, other = Desk(), Desk(1)
    request = one.ask("r", choices=3, max_tokens=30)
    one.turn()
    [begun] = one.take(Begin)
    one.hear("detokenizer", StopFound(begun.first_sequence, 0))
    one.lose()
    [handed] = one.hand_over(request)
    assert [choice.choice for choice in handed.choices] == [1, 2]
    other.hear("router", handed)
    other.run(40)
    ended = [end.sequence for sampled in other.take(Sampled) for end in sampled.ends]
    assert sorted(ended) == [begun.first_sequence + 1, begun.first_sequence + 2]


def test_whom_nobody_reads_any_more_ends():
    one, other = Desk(), Desk(1)
    request = one.ask("r", choices=2, max_tokens=30)
    one.lose()
    [handed] = one.hand_over(request)
    other.hear("router", handed)
    other.turn()
    [resumed] = other.take(Resume)
    other.hear("detokenizer", Unread(resumed.sequences))
    other.turn()
    assert not other.scheduler._requests


def test_a_label_is_in_use_until_its_request_is_over_elsewhere():
    desk = Desk()
    request = desk.ask("r")
    desk.lose()
    desk.hand_over(request)
    desk.ask("r")
    [reject] = desk.take(Reject)
    assert reject.refused.code == "duplicate_label"
    desk.hear("router", Settled([request.request_id]))
    desk.ask("r")
    assert not desk.take(Reject)


def test_content_is_retired_once_requests_that_have_left_are_over():
    desk = Desk()
    request = desk.ask("r", adapter="d")
    desk.run(3)
    desk.lose()
    desk.hand_over(request)
    desk.hear("adapters", Retire("d", 7))
    desk.turn()
    assert not desk.take(Retired)
    assert desk.scheduler.is_idle  # in a drain the router has left, which would say that it is over
    desk.hear("router", Settled([request.request_id]))
    desk.turn()
    assert desk.take(Retired) == [Retired("d", 7)]


def test_a_request_may_come_back():
    one, other = Desk(), Desk(1)
    request = one.ask("r", adapter="d", max_tokens=30)
    one.run(3)
    one.lose()
    [handed] = one.hand_over(request)
    other.hear("router", handed)
    other.run(3)
    other.lose()
    [handed] = other.hand_over(request)
    one.begin()
    one.hear("router", handed)
    assert len(one.scheduler._moves) == 0
    one.run(40)
    assert one.scheduler.is_idle
    assert len(other.scheduler._moves) == 1


def test_a_suspect_stays_and_doubt_goes_along():
    one, other = Desk(), Desk(1)
    request = one.ask("r", max_tokens=30)
    one.run(3)
    one.lose()
    [handed] = one.hand_over(request)
    assert handed.deaths_alone == 1
    other.hear("router", handed)
    other.turn()
    other.lose()
    assert other.scheduler._suspects.is_suspect(next(iter(other.scheduler._requests)))
    assert other.hand_over(request) == []
    assert len(other.scheduler._requests) == 1
    one.begin()
    [handed] = other.hand_over(request, with_suspects=True)  # for its runners do not come back
    one.hear("router", handed)
    suspect = next(iter(one.scheduler._requests))
    assert one.scheduler._suspects.alone is suspect
    one.turn()
    one.lose()
    assert not one.scheduler._requests  # it was the third death with nobody else there


def test_nothing_is_handed_over_before_there_is_room_to_say_what_was_noted_of_it():
    desk = Desk()
    request = desk.ask("r")
    desk.lose()
    desk.said.clear()
    desk.hear("router", Yield([request.request_id]))
    for _ in range(3):
        desk.turn(room=1)
    [mark] = desk.take(Mark)
    desk.said.clear()
    other = desk.ask("s")
    desk.hear("detokenizer", Marked(mark.number))
    for _ in range(3):
        desk.turn(room=1)
    assert [type(m) for to, m in desk.said if to == "router"] == [Progress, HandOver, Yielded]
    assert desk.take(Progress) == [Progress(accepted=[other.request_id])]


@pytest.mark.parametrize("index", [0, 1])
def test_a_scheduler_without_runners_says_so(index):
    desk = Desk(index)
    assert desk.take(Away) == [Away(None)]
    desk.lose()
    [away] = desk.take(Away)
    assert "requests are taken, and wait" in away.reason
