"""What must hold when requests move, broken on purpose: the simulator is worth what it catches."""

from functools import partial

import msgspec
import pytest

from tests.sim import test_moved_requests as moves
from tests.sim.test_moved_requests import play
from weft.actors.adapters.leaving import Leaving
from weft.actors.detokenizer.actor import Detokenizer
from weft.actors.router.actor import Router
from weft.actors.router.ledger import Ledger
from weft.actors.scheduler.candidates import Candidates
from weft.actors.scheduler.moves import Moves
from weft.actors.scheduler.suspects import Suspects
from weft.runtime.messages import Resume

pytestmark = pytest.mark.slow

SEEDS = range(80)


# ---- seen in drawn worlds ------------------------------------------------------------------------


def nobody_waits_until_the_last_words_are_heard(monkeypatch):
    begin, go = Moves.begin, Moves.go

    def hasty(self, asked, **others):
        begin(self, asked, **others)
        go(self, self._leaving[-1][0])

    monkeypatch.setattr(Moves, "begin", hasty)
    monkeypatch.setattr(Moves, "go", lambda self, mark: None)


def who_is_to_leave_is_still_computed(monkeypatch):
    begin = Moves.begin

    def diligent(self, asked, **others):
        before = list(self._waiting)
        begin(self, asked, **others)
        for sequence in before:
            if not self._waiting.has(sequence.number):
                self._waiting.append(sequence)

    go = Moves.go

    def going(self, mark):
        for request in self._leaving[0][1]:
            for sequence in request.sequences:
                if self._waiting.has(sequence.number):
                    self._waiting.remove(sequence)
        go(self, mark)

    monkeypatch.setattr(Moves, "begin", diligent)
    monkeypatch.setattr(Moves, "go", going)
    monkeypatch.setattr(Moves, "check", lambda self: None)


def _handing(monkeypatch, change):
    hand_over = Moves._hand_over
    monkeypatch.setattr(Moves, "_hand_over", lambda self, request: change(hand_over(self, request)))


def _each_choice(change, handed):
    return msgspec.structs.replace(handed, choices=list(map(change, handed.choices)))


def tokens_that_were_shown_stay_behind(monkeypatch):
    forget = partial(msgspec.structs.replace, output=[])
    _handing(monkeypatch, partial(_each_choice, forget))


def only_the_first_choice_moves(monkeypatch):
    _handing(
        monkeypatch,
        lambda handed: msgspec.structs.replace(handed, choices=handed.choices[:1]),
    )


def a_choice_waits_for_one_that_is_over(monkeypatch):
    is_ready = Candidates._is_ready

    def waiting(self, sequence):
        return is_ready(self, sequence) and (sequence.choice == 0 or sequence.request.leads)

    monkeypatch.setattr(Candidates, "_is_ready", waiting)


def who_has_left_is_counted_at_both(monkeypatch):
    monkeypatch.setattr(Ledger, "hand_over", lambda self, routed, replica: None)


@pytest.mark.parametrize(
    "break_rule",
    [
        who_is_to_leave_is_still_computed,
        tokens_that_were_shown_stay_behind,
        only_the_first_choice_moves,
        a_choice_waits_for_one_that_is_over,
        who_has_left_is_counted_at_both,
    ],
    ids=lambda rule: rule.__name__,
)
def test_a_broken_rule_is_caught(break_rule, monkeypatch, model, folder):
    break_rule(monkeypatch)
    with pytest.raises((AssertionError, TimeoutError, KeyError)):
        play_all(model, folder)


def play_all(model, folder):
    for seed in SEEDS:
        flow = play(seed, model, folder)
        flow.run(limit_s=60.0)
        flow.assert_all_are_answered()
        flow.assert_all_is_back()


# ---- seen in scenes of their own -----------------------------------------------------------------


def what_has_left_needs_nothing(monkeypatch):
    monkeypatch.setattr(Moves, "adapters", ())


def who_uses_what_it_had_retired_is_not_told_again(monkeypatch):
    monkeypatch.setattr(Leaving, "used", lambda self, scheduler, digest: None)


def nobody_says_that_nobody_reads(monkeypatch):
    receive = Detokenizer.receive
    monkeypatch.setattr(
        Detokenizer,
        "receive",
        lambda self, source, message, now_ns: (
            [] if isinstance(message, Resume) else receive(self, source, message, now_ns)
        ),
    )


def the_prompt_is_paid_once_more(monkeypatch):
    forget = partial(msgspec.structs.replace, cached_tokens=None)
    _handing(monkeypatch, partial(_each_choice, forget))


def a_drain_does_not_wait_for_what_moves(monkeypatch):
    monkeypatch.setattr(
        Router, "is_idle", property(lambda self: not (self._ledger.pending or self._catalogs))
    )


def suspects_leave_too(monkeypatch):
    monkeypatch.setattr(Suspects, "is_suspect", lambda self, request: False)


def doubt_stays_behind(monkeypatch):
    monkeypatch.setattr(Suspects, "remember", lambda self, *of_a_request: None)


def nobody_is_asked_for_anything(monkeypatch):
    monkeypatch.setattr(Router, "_ask", lambda self: [])


SCENES = [
    (nobody_says_that_nobody_reads, moves.test_a_client_that_goes_meanwhile_leaves_nothing),
    (the_prompt_is_paid_once_more, moves.test_nobody_pays_twice_or_counts_twice),
    (nobody_is_asked_for_anything, moves.test_streams_of_a_lost_replica_go_on_at_the_other),
    (nobody_is_asked_for_anything, moves.test_a_replica_that_comes_back_shares_what_waits),
    (nobody_is_asked_for_anything, moves.test_who_waits_goes_to_the_first_that_is_back),
    (what_has_left_needs_nothing, moves.test_content_without_a_name_goes_with_who_moved),
    (
        who_uses_what_it_had_retired_is_not_told_again,
        moves.test_content_without_a_name_goes_with_who_moved,
    ),
]

SCENES_OF_SEEDS = [
    (
        nobody_waits_until_the_last_words_are_heard,
        moves.test_what_was_said_elsewhere_is_heard_before,
    ),
    (
        suspects_leave_too,
        moves.test_a_request_that_kills_is_found_wherever_it_is,
    ),
    (
        doubt_stays_behind,
        moves.test_a_request_that_kills_is_found_wherever_it_is,
    ),
    (a_drain_does_not_wait_for_what_moves, moves.test_a_drain_finishes_what_moves),
]


@pytest.mark.parametrize(("break_rule", "scene"), SCENES, ids=lambda each: each.__name__)
def test_a_broken_rule_is_caught_in_its_scene(break_rule, scene, monkeypatch, model, folder):
    break_rule(monkeypatch)
    with pytest.raises((AssertionError, TimeoutError)):
        scene(model, folder)


@pytest.mark.parametrize(("break_rule", "scene"), SCENES_OF_SEEDS, ids=lambda each: each.__name__)
def test_a_broken_rule_is_caught_in_some_scene(break_rule, scene, monkeypatch, model, folder):
    break_rule(monkeypatch)
    with pytest.raises((AssertionError, TimeoutError)):
        show_all(scene, model, folder)


def show_all(scene, model, folder):
    for seed in range(20):
        scene(seed, model, folder)
