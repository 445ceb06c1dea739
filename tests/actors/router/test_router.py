"""The router between a tokenizer and schedulers that say what the test has them say."""

import pytest

from tests.actors.scheduler_harness import GREEDY, uses
from weft.actors.router.actor import Router
from weft.actors.router.moves import PATIENCE_NS
from weft.runtime.actor import Send, Turn
from weft.runtime.config import Config, Limits, TenantLimits
from weft.runtime.messages import (
    Abort,
    AdapterAnswer,
    AdapterReply,
    Away,
    CatalogSeen,
    Generate,
    HandedChoice,
    HandOver,
    Inspection,
    Progress,
    Refused,
    Reject,
    Settled,
    Yield,
    Yielded,
)

SECOND_NS = 10**9
FULL = "queue_full"


class Desk:
    """A router of three replicas, by default, where the first in turn is the first."""

    def __init__(self, replicas=3, method="round_robin", **options):
        config = Config(
            model="-", data_parallel_size=replicas, load_balance_method=method, **options
        )
        self.router = Router(config)
        self.now_ns = 0
        self._count = 0

    def hear(self, source, message):
        sends = self.router.receive(source, message, self.now_ns)
        self.router.check()
        return sends

    def ask(
        self, label=None, *, client="ann", adapter=None, choices=1, tenant="t", prompt=4, token=5
    ):
        """Return the request and what became of it: who got it, or why nobody did."""
        self._count += 1
        request_id = f"{self._count:032x}"
        generate = Generate(
            request_id, client, label or request_id, adapter or "base", [token] * prompt,
            uses(adapter), "", 8, choices, [2], GREEDY, tenant=tenant,
        )  # fmt: skip
        [(to, message)] = self.hear("tokenizer", generate)
        if isinstance(message, Reject):
            assert (to, message.client, message.request_id) == ("tokenizer", client, request_id)
            return generate, message.refused.code
        assert message is generate
        return generate, to

    def reject(self, generate, scheduler, code=FULL):
        refused = Refused(generate.label, code, "because")
        return self.hear(scheduler, Reject(generate.client, refused, generate.request_id))

    def accept(self, generate, scheduler):
        return self.hear(scheduler, Progress(accepted=[generate.request_id]))

    def end(self, generate, scheduler, choices=1):
        return self.hear(scheduler, Progress(ended=[generate.request_id] * choices))


@pytest.fixture
def desk():
    return Desk()


def test_requests_take_turns(desk):
    assert [desk.ask()[1] for _ in range(4)] == [
        "scheduler0", "scheduler1", "scheduler2", "scheduler0",
    ]  # fmt: skip


def test_a_request_goes_where_its_adapter_is_on_its_way_or_on_the_device():
    desk = Desk(method="adapter_aware")
    home = desk.ask(adapter="d")[1]
    assert [desk.ask(adapter="d")[1] for _ in range(3)] == [home] * 3
    desk = Desk(method="adapter_aware")
    desk.hear("scheduler2", Progress(loaded=["d", "e"]))
    assert [desk.ask(adapter="d")[1] for _ in range(3)] == ["scheduler2"] * 3
    desk.hear("scheduler1", Progress(loaded=["e"]))
    desk.hear("scheduler2", Progress(evicted=["e"]))
    assert desk.ask(adapter="e")[1] == "scheduler1"


def test_an_adapter_comes_to_a_second_replica_once_its_first_has_too_much_to_do():
    desk = Desk(method="adapter_aware", max_num_batched_tokens=256)
    homes = [desk.ask(adapter="d", prompt=60)[1] for _ in range(30)]
    assert {homes.count(f"scheduler{index}") for index in range(3)} == {10}
    assert homes[:4] == homes[:1] * 4  # while it is no more than a step


def test_a_prompt_that_begins_like_another_goes_where_that_one_is():
    desk = Desk(method="adapter_aware")
    homes = {token: desk.ask(prompt=100, token=token)[1] for token in (7, 8, 9)}
    assert len(set(homes.values())) == 3
    for token in (9, 7, 8):
        assert desk.ask(prompt=120, token=token)[1] == homes[token]
    desk = Desk(method="adapter_aware", enable_prefix_caching=False)
    assert len({desk.ask(prompt=100, token=7)[1] for _ in range(3)}) == 3


def test_a_full_queue_makes_the_next_replica_get_it_and_the_client_hears_of_the_last(desk):
    generate, to = desk.ask()
    assert to == "scheduler0"
    assert desk.reject(generate, "scheduler0") == [Send("scheduler1", generate)]
    assert desk.reject(generate, "scheduler1") == [Send("scheduler2", generate)]
    [(to, told)] = desk.reject(generate, "scheduler2")
    assert (to, told.refused.code, told.refused.label) == ("tokenizer", FULL, generate.label)
    assert desk.router.is_idle


def test_what_is_refused_for_another_reason_or_was_cancelled_is_not_tried_again(desk):
    generate, to = desk.ask()
    assert [send.to for send in desk.reject(generate, to, "duplicate_label")] == ["tokenizer"]
    generate, to = desk.ask()
    abort = Abort(generate.client, generate.label)
    assert desk.hear("tokenizer", abort) == [Send(to, abort)]
    assert [send.to for send in desk.reject(generate, to)] == ["tokenizer"]


def test_an_abort_goes_to_who_has_the_request_and_of_an_unknown_one_to_nobody(desk):
    desk.ask()
    generate, to = desk.ask("mine")
    desk.ask()
    assert to == "scheduler1"
    desk.accept(generate, to)
    abort = Abort("ann", "mine")
    assert desk.hear("tokenizer", abort) == [Send("scheduler1", abort)]
    assert desk.hear("tokenizer", Abort("bob", "mine")) == []
    desk.end(generate, to)
    assert desk.hear("tokenizer", abort) == []


def test_a_label_in_use_is_judged_by_the_replica_that_has_it(desk):
    first, to = desk.ask("same")
    assert [desk.ask("same")[1] for _ in range(3)] == [to] * 3
    assert desk.ask("same", client="bob")[1] == "scheduler1"
    desk.accept(first, to)
    desk.end(first, to)
    assert {desk.ask("same")[1] for _ in range(3)} == {to}  # others of this label are there yet


def test_a_catalog_waits_for_the_requests_before_it_and_for_no_later_one(desk):
    before, home = desk.ask()
    assert desk.hear("tokenizer", CatalogSeen(7)) == []
    later, _ = desk.ask()
    assert not desk.router.is_idle
    moved, *rest = desk.reject(before, home)
    assert rest == []  # it still looks for a replica
    assert desk.accept(before, moved.to) == [Send("scheduler0", CatalogSeen(7))]
    desk.hear("tokenizer", CatalogSeen(8))
    desk.hear("tokenizer", CatalogSeen(9))
    assert desk.accept(later, "scheduler1") == [Send("scheduler0", CatalogSeen(9))]
    assert desk.hear("tokenizer", CatalogSeen(10)) == [Send("scheduler0", CatalogSeen(10))]


def test_a_catalog_goes_on_when_the_last_request_before_it_is_refused_by_all():
    desk = Desk(replicas=2)
    generate, _ = desk.ask()
    desk.hear("tokenizer", CatalogSeen(7))
    desk.reject(generate, "scheduler0")
    told, seen = desk.reject(generate, "scheduler1")
    assert (told.to, seen) == ("tokenizer", Send("scheduler0", CatalogSeen(7)))


def test_a_tenants_concurrency_is_bounded_over_all_replicas():
    desk = Desk(tenants={"t": TenantLimits(max_concurrency=3)})
    held = [desk.ask(), desk.ask(choices=2)]
    assert desk.ask()[1] == "rate_limit_exceeded"
    assert desk.ask(tenant="other")[1] == "scheduler2"
    for generate, to in held:
        desk.accept(generate, to)
    desk.end(*held[1])  # one of its choices
    assert desk.ask()[1].startswith("scheduler")
    assert desk.ask()[1] == "rate_limit_exceeded"


def test_an_adapters_limit_holds_over_all_replicas():
    desk = Desk(adapter_limits={"sql": Limits(max_concurrency=1)})
    assert desk.ask(adapter="sql", tenant="one")[1] == "scheduler0"
    assert desk.ask(adapter="sql", tenant="two")[1] == "rate_limit_exceeded"


def test_tokens_a_minute_are_counted_as_they_come_from_any_replica():
    desk = Desk(tenants={"t": TenantLimits(max_tokens_per_minute=60)})
    one, two = desk.ask(prompt=10), desk.ask(prompt=10)
    for generate, to in (one, two):
        desk.accept(generate, to)
        desk.hear(to, Progress(metered=[generate.request_id] * 20))
    assert desk.ask(prompt=10)[1] == "rate_limit_exceeded"
    desk.now_ns += 10 * SECOND_NS
    assert desk.ask(prompt=10)[1].startswith("scheduler")


def test_what_nobody_takes_costs_nothing():
    desk = Desk(
        replicas=2, tenants={"t": TenantLimits(max_concurrency=1, max_tokens_per_minute=60)}
    )
    for _ in range(20):
        generate, to = desk.ask(prompt=40)
        [again] = desk.reject(generate, to)
        desk.reject(generate, again.to)
    assert desk.ask(prompt=40)[1].startswith("scheduler")


def test_answers_of_the_store_and_inspections_go_from_one_scheduler_to_the_next(desk):
    reply = AdapterReply("ann", AdapterAnswer("l", "listed", []))
    assert desk.hear("scheduler0", reply) == [Send("scheduler1", reply)]
    assert desk.hear("scheduler1", reply) == [Send("scheduler2", reply)]
    assert desk.hear("scheduler2", reply) == [Send("tokenizer", reply)]
    inspection = Inspection("ann", "l", {"scheduler0": {"rows": 1.0}})
    [(to, inspected)] = desk.hear("scheduler0", inspection)
    assert to == "scheduler1"
    assert inspected.sections["scheduler0"] == {"rows": 1.0}
    assert desk.hear("scheduler1", inspected) == [Send("scheduler2", inspected)]


def test_an_inspection_says_what_clients_were_refused_and_where_requests_went():
    desk = Desk(replicas=2, tenants={"t": TenantLimits(max_concurrency=2)})
    generate, to = desk.ask()
    desk.reject(generate, to)
    desk.ask()
    desk.ask()
    [(_, inspected)] = desk.hear("scheduler0", Inspection("ann", "l", {}))
    assert inspected.sections["router"] == {
        "requests": 2, "pending": 2, "rejected_total": 1, "moved_total": 1,
        "moving": 0, "handed_over_total": 0, "replicas_away": 0,
        "replica0_requests_total": 1, "replica0_tokens": 0,
        "replica1_requests_total": 2, "replica1_tokens": 24,
    }  # fmt: skip
    [tenant] = inspected.tenants
    assert (tenant.tenant, tenant.rejected, tenant.requests) == ("t", 1, 0)


# ---- replicas without runners --------------------------------------------------------------------


def handed(generate):
    choices = [HandedChoice(number, number, [], None) for number in range(generate.choices)]
    return HandOver(generate, choices, 0, None, None, None)


def accepted(desk, count, **options):
    """So many requests, by the index of their replica."""
    found = {}
    for _ in range(count):
        generate, scheduler = desk.ask(**options)
        desk.accept(generate, scheduler)
        found.setdefault(int(scheduler[-1]), []).append(generate)
    return found


def asked(sends):
    """Which requests a replica is asked for, and which one."""
    found = [(send.to, send.message) for send in sends if isinstance(send.message, Yield)]
    assert len(found) <= 1
    return found[0] if found else None


def lose(desk, replica):
    return desk.hear(f"scheduler{replica}", Away("gone"))


def ids(generates):
    return [generate.request_id for generate in generates]


def test_a_lost_replica_is_asked_for_all_that_it_has_and_others_go_on_with_it(desk):
    requests = accepted(desk, 12)
    to, message = asked(lose(desk, 1))
    assert (to, message) == ("scheduler1", Yield(ids(requests[1])))
    places = []
    for generate in requests[1]:
        [(to, moved)] = desk.hear("scheduler1", handed(generate))
        assert moved.generate is generate
        places.append(to)
    assert {*places} <= {"scheduler0", "scheduler2"}
    assert not desk.router.is_idle
    assert desk.hear("scheduler1", Yielded()) == []
    for generate, to in zip(requests[1], places, strict=True):
        desk.hear(to, Progress(accepted=[generate.request_id]))
    assert desk.router.is_idle


def test_one_replica_is_asked_at_a_time_and_the_next_once_all_has_been_taken(desk):
    requests = accepted(desk, 6)
    lose(desk, 0)
    assert asked(lose(desk, 1)) is None
    [(to, _)] = desk.hear("scheduler0", handed(requests[0][0]))
    assert to == "scheduler2"
    [(to, _)] = desk.hear("scheduler0", handed(requests[0][1]))
    assert desk.hear("scheduler0", Yielded()) == []
    desk.hear("scheduler2", Progress(accepted=[requests[0][0].request_id]))
    sends = desk.hear("scheduler2", Progress(accepted=[requests[0][1].request_id]))
    assert asked(sends) == ("scheduler1", Yield(ids(requests[1])))


def test_what_stays_when_it_is_asked_for_is_asked_for_again_only_by_another_life(desk):
    requests = accepted(desk, 3)
    lose(desk, 1)
    assert asked(desk.hear("scheduler1", Yielded())) is None
    assert asked(desk.end(requests[0][0], "scheduler0")) is None
    desk.hear("scheduler1", Away(None))
    assert asked(lose(desk, 1)) == ("scheduler1", Yield(ids(requests[1])))


def test_runners_that_do_not_come_back_keep_no_suspects(desk):
    requests = accepted(desk, 3)
    lose(desk, 1)
    desk.hear("scheduler1", Yielded())
    assert desk.router.advance(Turn(PATIENCE_NS - 1, lambda peer: 1)) == []
    sends = desk.router.advance(Turn(PATIENCE_NS, lambda peer: 1))
    assert asked(sends) == ("scheduler1", Yield(ids(requests[1]), with_suspects=True))
    assert desk.router.advance(Turn(2 * PATIENCE_NS, lambda peer: 1)) == []
    desk.hear("scheduler1", Yielded())
    desk.hear("scheduler1", Away(None))
    assert asked(lose(desk, 1)) == ("scheduler1", Yield(ids(requests[1])))


def test_nobody_is_asked_while_nobody_is_there_and_the_first_that_is_back_goes_on(desk):
    requests = accepted(desk, 6)
    sends = [lose(desk, replica) for replica in range(3)]
    desk.hear("scheduler0", Yielded())
    [away] = [send.message for send in sends[2] if send.to == "tokenizer"]
    assert away == Away("gone")
    sends = desk.hear("scheduler2", Away(None))
    assert "2 of 3 replicas" in sends[0].message.degraded
    to, message = asked(sends)
    assert message.request_ids in (ids(requests[0]), ids(requests[1]))
    assert to in ("scheduler0", "scheduler1")


def test_what_is_handed_over_while_nobody_else_is_there_goes_back():
    desk = Desk(replicas=2)
    requests = accepted(desk, 2)
    lose(desk, 0)
    desk.hear("scheduler0", Away(None))
    lose(desk, 1)
    [(to, _)] = desk.hear("scheduler0", handed(requests[0][0]))
    assert to == "scheduler0"


def test_no_more_is_moved_than_others_ordinarily_have():
    desk = Desk(replicas=2, max_queued_requests=3, max_num_seqs=2)
    requests = accepted(desk, 12)
    for generate in requests[1][:3]:
        desk.end(generate, "scheduler1")
    assert asked(lose(desk, 0)) == ("scheduler0", Yield(ids(requests[0][:2])))
    for generate in requests[0][:2]:
        desk.hear("scheduler0", handed(generate))
        desk.hear("scheduler1", Progress(accepted=[generate.request_id]))
    assert asked(desk.hear("scheduler0", Yielded())) is None
    sends = desk.end(requests[1][3], "scheduler1")
    assert asked(sends) == ("scheduler0", Yield(ids(requests[0][2:3])))


def test_who_comes_back_shares_what_others_have_beyond_balance_the_newest_first():
    desk = Desk(replicas=2, max_num_batched_tokens=16, max_num_seqs=16)
    desk.hear("scheduler0", Away("gone"))
    requests = accepted(desk, 12)[1]
    sends = desk.hear("scheduler0", Away(None))
    to, message = asked(sends)
    assert to == "scheduler1"
    assert message.request_ids == ids(requests[::-1])[: len(message.request_ids)]
    assert 4 <= len(message.request_ids) <= 6


def test_a_cancelled_request_that_moves_is_cancelled_where_it_comes_to(desk):
    requests = accepted(desk, 2)
    generate = requests[0][0]
    lose(desk, 0)
    abort = Abort(generate.client, generate.label)
    assert desk.hear("tokenizer", abort) == [Send("scheduler0", abort)]
    [(to, _), again] = desk.hear("scheduler0", handed(generate))
    assert again == Send(to, abort)


def test_whoever_had_a_request_hears_that_it_is_over(desk):
    requests = accepted(desk, 3, choices=2)
    generate = requests[0][0]
    lose(desk, 0)
    [(to, _)] = desk.hear("scheduler0", handed(generate))
    desk.hear("scheduler0", Yielded())
    desk.hear(to, Progress(accepted=[generate.request_id]))
    assert desk.end(generate, to) == []
    assert desk.end(generate, to) == [Send("scheduler0", Settled([generate.request_id]))]


def test_a_catalog_need_not_wait_for_who_moves(desk):
    requests = accepted(desk, 3)
    lose(desk, 1)
    desk.hear("scheduler1", handed(requests[1][0]))
    seen = CatalogSeen(4)
    assert desk.hear("tokenizer", seen) == [Send("scheduler0", seen)]
