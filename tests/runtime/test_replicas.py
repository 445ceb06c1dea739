"""What replicas are called, and how they count apart."""

import pytest

from weft.runtime.replicas import ALONE, NUMBERS, Replica, replica_of, without_replica


def test_the_only_replica_has_names_without_a_number():
    assert (ALONE.scheduler, ALONE.runner(1), ALONE.door) == ("scheduler", "runner1", "tokenizer")
    assert without_replica("scheduler") == ("scheduler", None)
    assert without_replica("runner1") == ("runner1", None)
    assert replica_of("runner1", 1) == replica_of("scheduler", 1) == ALONE


@pytest.mark.parametrize("index", [0, 1, 11, 63])
def test_a_role_says_which_replica_it_is_of(index):
    replica = Replica(index, 64)
    assert replica.door == "router"
    assert replica_of(replica.scheduler, 64) == replica_of(replica.runner(12), 64) == replica
    assert without_replica(replica.scheduler) == ("scheduler", index)
    assert without_replica(replica.runner(12)) == ("runner12", index)


def test_roles_of_no_replica_are_as_they_are():
    for role in ("gateway", "tokenizer", "router", "adapters"):
        assert without_replica(role) == (role, None)


def test_every_number_belongs_to_the_replica_that_counts_it():
    for index in (0, 1, 63):
        first = Replica(index, 64).first_number
        assert first == index * NUMBERS
        assert first + NUMBERS < 2**53
