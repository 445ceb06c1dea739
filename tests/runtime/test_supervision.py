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


class StillWatch:
    def look(self):
        return True


@dataclass
class Member:
    """A process that dies when it is told to."""

    role: str
    ready: Ready | None = None
    is_alive: bool = True
    is_stopping: bool = False
    watch: StillWatch = field(default_factory=StillWatch)

    def kill(self):
        self.is_alive = False


@pytest.fixture
def group():
    group = Group(["a0", "a1"])
    group.begin([Member("a0"), Member("a1")])
    return group


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
    group.begin([Member("a0"), Member("a1")])
    assert get_ready(group, 8.0) == 3.0  # as long as it was away


def test_only_a_group_that_is_up_can_be_stuck(group):
    assert group.stuck() is None
    get_ready(group, 1.0)
    assert group.stuck() == "a0"
    group._members[0].is_stopping = True
    assert group.stuck() is None


def test_a_group_that_never_gets_up_names_the_last_cause(group):
    for _ in range(STARTS_MAX - 1):
        group.end(Died("an earlier cause", 1))
        group.ended(1.0)
        group.begin([Member("a0"), Member("a1")])
    group.end(Died("a bug in loading", 1))
    with pytest.raises(
        Died, match="a0 and a1 did not become ready in 3 lives; the last time: a bug"
    ):
        group.ended(1.0)


def test_a_group_that_is_given_up_has_no_next_life(group):
    get_ready(group, 1.0)
    group.end(Died("a1 died", 1))
    group.ended(2.0)
    group.give_up()
    assert group.due_at is None
    assert not group.is_up
    assert group.is_gone
