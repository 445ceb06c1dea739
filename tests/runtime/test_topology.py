import typing

import pytest

from weft.runtime import topology
from weft.runtime.config import Config
from weft.runtime.messages import (
    AdaptersInbox,
    ClientInbox,
    DetokenizerInbox,
    HandOver,
    Inspection,
    Mark,
    Marked,
    Resume,
    RouterInbox,
    RunnerInbox,
    SchedulerInbox,
    Settled,
    Step,
    StepDone,
    TokenizerInbox,
    Unread,
    Yield,
)
from weft.runtime.topology import CLIENT, TOPOLOGY, Edge, Process, Topology, with_runners

INBOXES = {
    "tokenizer": TokenizerInbox,
    "adapters": AdaptersInbox,
    "scheduler": SchedulerInbox,
    "runner0": RunnerInbox,
    "detokenizer": DetokenizerInbox,
    CLIENT: ClientInbox,
}


# What is said only where there are several schedulers.
OF_SEVERAL = {HandOver, Mark, Marked, Resume, Settled, Unread, Yield}


@pytest.mark.parametrize("role", INBOXES)
def test_what_flows_to_a_role_is_what_its_actor_hears(role):
    assert heard_by(TOPOLOGY, role) == set(typing.get_args(INBOXES[role])) - OF_SEVERAL


def heard_by(table, role):
    heard = {message for edge in table.bound_by(role) for message in edge.forward}
    return heard | {message for edge in table.connected_by(role) for message in edge.backward}


def test_several_schedulers_hear_together_what_one_does_and_the_router_stands_between():
    table = with_runners(2, replicas=3)
    table.check()
    assert list(table.groups) == ["scheduler0", "scheduler1", "scheduler2"]
    assert table.groups["scheduler1"] == ["runner1_0", "runner1_1"]
    assert heard_by(table, "router") == set(typing.get_args(RouterInbox))
    together = {message for scheduler in table.groups for message in heard_by(table, scheduler)}
    assert together == set(typing.get_args(SchedulerInbox))
    for role in ("tokenizer", "adapters", "detokenizer"):
        assert heard_by(table, role) == set(typing.get_args(INBOXES[role]))


def test_what_a_client_may_say_and_hear_is_the_same_with_any_number_of_replicas():
    edges = [edge for edge in with_runners(1, replicas=2).edges if edge.connects == CLIENT]
    assert edges == [edge for edge in TOPOLOGY.edges if edge.connects == CLIENT]


def test_a_client_cannot_say_what_only_processes_may():
    said = {m for edge in TOPOLOGY.connected_by(CLIENT) for m in edge.forward}
    inside = {m for edge in TOPOLOGY.edges if edge.connects != CLIENT for m in edge.forward}
    assert not said & inside


def test_edges_never_connect_in_a_circle():
    # Roles hold back their work for a jammed way out: in a circle they would wait for each other.
    order = ["client", "adapters", "runner", "tokenizer", "router", "scheduler", "detokenizer"]
    for edge in (*TOPOLOGY.edges, *with_runners(2, replicas=2).edges):
        connects, binds = (role.rstrip("0123456789_") for role in edge[:2])
        assert order.index(connects) < order.index(binds)


@pytest.mark.parametrize(
    "broken",
    [
        Topology((Process("a", "", ""), Process("a", "", "")), ()),
        Topology((Process(CLIENT, "", ""),), ()),
        Topology((Process("a", "", ""),), (Edge("a", "b", (), (), 2, 2),)),
        Topology((Process("a", "", ""),), (Edge("b", "a", (), (), 2, 2),)),
        Topology((Process("a", "", ""),), (Edge("a", "a", (), (), 2, 2),)),
        Topology((Process("a", "", ""),), (Edge(CLIENT, "a", (), (), 1, 2),)),
        Topology((Process("a", "", ""),), (Edge(CLIENT, "a", (), (), 2, 2),) * 2),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(broken):
    with pytest.raises(AssertionError):
        broken.check()


def test_every_socket_lies_in_the_run_directory(tmp_path):
    assert topology.address(tmp_path, "scheduler") == f"ipc://{tmp_path}/scheduler.sock"
    with pytest.raises(AssertionError, match="too long"):
        topology.address(tmp_path / ("x" * 100), "scheduler")


def test_the_table_and_the_diagram_show_every_process_and_message():
    table, diagram = topology.as_table(TOPOLOGY), topology.as_mermaid(TOPOLOGY)
    for process in TOPOLOGY.processes:
        assert process.purpose in table
    for edge in TOPOLOGY.edges:
        assert f"{edge.connects} -> {edge.binds}" in table
        for message in (*edge.forward, *edge.backward):
            assert message.__name__ in table
            assert message.__name__ in diagram
    assert '    runner0 -->|"RunnerReady<br/>StepDone<br/>Inspection"| scheduler' in diagram


def test_a_topology_is_found_by_the_name_of_its_function():
    name = "weft.runtime.topology:serving"
    assert topology.find(name, Config(model="m")) == TOPOLOGY
    assert topology.find(name, Config(model="m", tensor_parallel_size=3)) == with_runners(3)
    both = Config(model="m", tensor_parallel_size=3, data_parallel_size=2)
    assert topology.find(name, both) == with_runners(3, replicas=2)


def test_each_rank_has_a_runner_and_only_the_first_answers_steps():
    table = with_runners(3)
    table.check()
    group = table.groups["scheduler"]
    assert group == ["runner0", "runner1", "runner2"]
    said = {role: table.connected_by(role)[0].forward for role in group}
    assert StepDone in said["runner0"]
    assert said["runner1"] == said["runner2"]
    assert set(said["runner0"]) - set(said["runner1"]) == {StepDone}
    for role in group:
        assert table.connected_by(role)[0].backward == (Step, Inspection)


def test_runners_that_compute_together_are_shown_together():
    assert "compute each step together: runner0, runner1" in topology.as_table(with_runners(2))
    assert "    runner0 <-.-> runner1" in topology.as_mermaid(with_runners(2))
    assert "<-.->" not in topology.as_mermaid(TOPOLOGY)
