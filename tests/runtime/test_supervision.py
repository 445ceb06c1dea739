"""When a group lives again: the policy, and the count by which a stuck process is known."""

import os
from dataclasses import dataclass, field

import pytest

from weft.runtime.child import Died
from weft.runtime.pulse import LOOKS, Pulse, Watch
from weft.runtime.status import Ready
from weft.runtime.supervision import CALM_S, DELAY_MAX_S, STARTS_MAX, Group, Restarts


@pytest.fixture
def watch():
    watch = Watch()
    yield watch
    watch.close()


def test_the_first_death_costs_no_time_and_each_further_one_twice_as_much():
    restarts = Restarts()
    delays = [restarts.died(ready_s=1.0) for _ in range(40)]
    assert delays[:5] == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.8])
    assert delays[-1] == DELAY_MAX_S


def test_a_life_of_some_length_makes_good_for_deaths_before_it():
    restarts = Restarts()
    for _ in range(5):
        restarts.died(ready_s=1.0)
    assert restarts.died(ready_s=CALM_S) == 0.0


def test_who_is_never_ready_is_given_up():
    restarts = Restarts()
    assert all(restarts.died(ready_s=None) is not None for _ in range(STARTS_MAX - 1))
    assert restarts.died(ready_s=1.0) is not None
    assert all(restarts.died(ready_s=None) is not None for _ in range(STARTS_MAX - 1))
    assert restarts.died(ready_s=None) is None


def test_a_process_that_beats_is_never_stuck(watch):
    pulse = Pulse(watch.fd)
    for _ in range(3 * LOOKS):
        pulse.beat()
        assert not watch.look()


def test_a_process_that_does_not_beat_is_stuck_after_some_looks_until_it_does(watch):
    pulse = Pulse(watch.fd)
    pulse.beat()
    assert [watch.look() for _ in range(LOOKS + 1)] == [False] * LOOKS + [True]
    pulse.beat()
    assert not watch.look()


def test_the_memory_of_a_pulse_has_no_name(watch):
    assert "deleted" in os.readlink(f"/proc/self/fd/{watch.fd}")


@dataclass
class CountingWatch:
    """Has seen no beat for as many looks as it has had, unless there are beats."""

    has_beats: bool = False
    looks: int = 0

    def look(self):
        self.looks = 0 if self.has_beats else self.looks + 1
        return self.looks >= LOOKS


@dataclass
class Member:
    """A process that dies when it is told to."""

    role: str
    ready: Ready | None = None
    is_alive: bool = True
    is_stopping: bool = False
    doing: str = ""
    watch: CountingWatch = field(default_factory=CountingWatch)

    def kill(self):
        self.is_alive = False


WATCHDOG_S = 8.0
LOADING_S = 80.0


@pytest.fixture
def group():
    group = Group(["a0", "a1"], watchdog_timeout_s=WATCHDOG_S, loading_timeout_s=LOADING_S)
    group.begin([Member("a0"), Member("a1")], 0.0)
    return group


def watch_until(group, now, end):
    """Look whenever it is due; return when something was wrong, and what."""
    while group.looks_at is not None and group.looks_at <= end:
        now = group.looks_at
        cause = group.stuck(now)
        if cause is not None:
            return now, str(cause)
    return None


def get_ready(group, now):
    for member in group._members:
        member.ready = Ready()
    return group.heard(now)


def test_a_group_is_up_once_all_are_ready(group):
    group._members[0].ready = Ready()
    assert group.heard(1.0) is None
    assert not group.is_up
    get_ready(group, 2.0)
    assert group.is_up


def test_when_one_dies_all_are_killed_and_one_cause_is_named(group):
    get_ready(group, 1.0)
    group._members[1].is_alive = False
    assert group.end(Died("a1 died", 1))
    assert not group.end(Died("a0 died of it", 1))
    assert group.is_gone
    assert group.ended(5.0) == 0.0
    assert group.due_at == 5.0
    group.begin([Member("a0"), Member("a1")], 5.0)
    assert get_ready(group, 8.0) == 3.0  # as long as it was away


def test_a_group_that_is_up_is_stuck_when_its_first_rank_is(group):
    get_ready(group, 1.0)
    group._members[1].watch.has_beats = True
    assert watch_until(group, 1.0, 100.0) == (
        1.0 + WATCHDOG_S, "the process a0 has not got on for 8 s"
    )  # fmt: skip


def test_the_second_rank_of_a_group_that_is_up_is_not_looked_at(group):
    get_ready(group, 1.0)
    group._members[0].watch.has_beats = True
    assert watch_until(group, 1.0, 100.0) is None


def test_nobody_is_looked_at_that_was_told_to_stop(group):
    get_ready(group, 1.0)
    group._members[0].is_stopping = True
    assert watch_until(group, 1.0, 100.0) is None


@pytest.mark.parametrize("number", [0, 1])
def test_any_rank_may_be_stuck_while_it_loads_and_it_is_said_where(group, number):
    group._members[number].doing = "loading weights 40%"
    group._members[1 - number].watch.has_beats = True
    text = f"the process a{number} has not got on for 80 s while it was starting (loading weights "
    assert watch_until(group, 0.0, 1000.0) == (LOADING_S, text + "40%)")


def test_loading_may_take_as_long_as_it_likes_if_it_gets_on(group):
    for member in group._members:
        member.watch.has_beats = True
    assert watch_until(group, 0.0, 100 * LOADING_S) is None


def test_of_several_that_are_stuck_the_one_that_stopped_first_is_named(group):
    group._members[0].watch.has_beats = True
    assert watch_until(group, 0.0, LOADING_S / 2) is None
    group._members[0].watch.has_beats = False
    [_, said] = watch_until(group, LOADING_S / 2, 1000.0)
    assert "process a1" in said
    assert "it has said nothing yet" in said


def test_a_rank_that_is_ready_waits_for_the_others_as_long_as_they_get_on(group):
    group._members[0].ready = Ready()
    group._members[1].watch.has_beats = True
    assert watch_until(group, 0.0, 100 * LOADING_S) is None


def test_nobody_looks_at_a_group_that_is_ending_or_waits_for_its_next_life(group):
    group.end(Died("a1 died", 1))
    assert group.looks_at is None
    group.ended(5.0)
    assert group.looks_at is None
    group.begin([Member("a0"), Member("a1")], 6.0)
    assert group.looks_at == 6.0 + LOADING_S / LOOKS


def test_a_group_that_never_gets_up_names_the_last_cause(group):
    for _ in range(STARTS_MAX - 1):
        group.end(Died("an earlier cause", 1))
        group.ended(1.0)
        group.begin([Member("a0"), Member("a1")], 1.0)
    group.end(Died("a bug in loading", 1))
    with pytest.raises(
        Died, match="a0 and a1 did not become ready in 3 lives; the last time: a bug"
    ):
        group.ended(1.0)
    assert group.is_given_up


def test_a_group_that_is_given_up_has_no_next_life(group):
    get_ready(group, 1.0)
    group.end(Died("a1 died", 1))
    group.ended(2.0)
    group.give_up()
    assert group.due_at is None
    assert not group.is_up
    assert group.is_gone
