import pytest

from weft.actors.scheduler.policy import (
    LOADS_MAX,
    OVERTAKEN_MAX,
    ROTATE_STEPS,
    Candidate,
    Need,
    NeverFits,
    Room,
    admit,
    output_max,
    rotate,
)

ROOM = Room(rows=10, tokens=100, pages=10, adapters=1, pinned=frozenset())


def candidate(key, *, adapter=None, adapters=None, overtaken=0, is_ready=True):
    """Of no adapter, one, or several of one letter each."""
    names = tuple(adapters or ([adapter] if adapter else []))
    return Candidate(key, names, overtaken, is_ready)


def decide(waiting, room=ROOM, *, needs=None, host=lambda adapter: True):
    needs = needs or {}
    adapters = {each.key: each.adapters for each in waiting}

    def need(key):
        return needs.get(key) or Need(1, (0,) * len(adapters[key]), 10, 1)

    return admit(waiting, room, need=need, is_at_hand=host)


@pytest.mark.parametrize(
    "big", [Need(11, (), 10, 1), Need(1, (), 101, 101)], ids=["pages", "tokens"]
)
def test_a_sequence_that_does_not_fit_is_not_overtaken(big):
    assert decide([candidate(1), candidate(2), candidate(3)], needs={2: big}).admitted == [1]


def test_a_prompt_longer_than_the_budget_starts_with_what_there_is():
    assert decide([candidate(1), candidate(2)], needs={1: Need(1, (), 500, 1)}).admitted == [1]


def test_an_adapter_without_a_slot_is_passed_over():
    waiting = [
        candidate(1, adapter="a"),
        candidate(2, adapter="b"),
        candidate(3, adapter="a"),
        candidate(4),
    ]
    admission = decide(waiting)
    assert admission.admitted == [1, 3, 4]
    assert admission.overtaken == [2]


def test_an_adapter_in_use_shares_its_slot_and_others_wait():
    waiting = [candidate(1, adapter="a"), candidate(2, adapter="b")]
    room = ROOM._replace(pinned=frozenset({"b"}))
    assert decide(waiting, room).admitted == [2]


def test_an_adapter_that_is_not_in_host_memory_is_fetched_meanwhile():
    waiting = [candidate(1, adapter="a"), candidate(2, adapter="b")]
    admission = decide(waiting, host=lambda adapter: adapter == "b")
    assert admission.admitted == [2]
    assert admission.lacking == [1]
    assert admission.overtaken == []


def test_a_load_too_many_waits_for_the_next_step_and_stops_nobody():
    cold = [candidate(key, adapter=f"cold{key}") for key in range(LOADS_MAX + 2)]
    again = candidate(90, adapter="cold0")
    warm = candidate(91, adapter="warm")
    idle = candidate(92, adapter="idle")
    room = ROOM._replace(
        adapters=20, rows=20, pages=20, pinned=frozenset({"warm"}),
        resident=frozenset({"warm", "idle"}),
    )  # fmt: skip
    admission = decide([*cold, again, warm, idle], room)
    assert admission.admitted == [*range(LOADS_MAX), 90, 91, 92]
    assert admission.overtaken == []
    left = cold[LOADS_MAX:]
    next_step = decide([*left, *cold[:LOADS_MAX]], room)
    assert next_step.admitted == [LOADS_MAX, LOADS_MAX + 1, 0, 1]


def test_a_starving_adapter_is_overtaken_only_by_base_rows():
    waiting = [
        candidate(1, adapter="cold", overtaken=OVERTAKEN_MAX),
        candidate(2, adapter="warm"),
        candidate(3),
    ]
    admission = decide(waiting, ROOM._replace(pinned=frozenset({"warm"})))
    assert admission.admitted == [3]
    assert admission.starving == 1


def test_a_sequence_gets_all_its_adapters_or_waits_for_all():
    waiting = [
        candidate(1, adapters="ab"),
        candidate(2, adapters="xa"),
        candidate(3, adapters="bc"),
        candidate(4, adapter="a"),
    ]
    room = ROOM._replace(adapters=2, resident=frozenset("abcx"))
    admission = decide(waiting, room._replace(pinned=frozenset("x")))
    assert admission.admitted == [2, 4]  # x is in use: one more fits
    assert admission.overtaken == [1, 1, 3]
    assert decide(waiting, room).admitted == [1, 4]


def test_a_sequence_lacks_its_adapters_if_one_of_them_is_cold():
    waiting = [candidate(1, adapters="ab"), candidate(2, adapter="a"), candidate(3, adapters="bc")]
    room = ROOM._replace(adapters=4)
    admission = decide(waiting, room, host=lambda adapter: adapter == "a")
    assert admission.admitted == [2]
    assert admission.lacking == [1, 3]


def test_one_of_several_adapters_without_slots_starves_like_any_other():
    waiting = [
        candidate(1, adapters="ab", overtaken=OVERTAKEN_MAX),
        candidate(2, adapters="ac"),
        candidate(3),
    ]
    room = ROOM._replace(adapters=2, pinned=frozenset("ac"))
    admission = decide(waiting, room)
    assert (admission.admitted, admission.starving) == ([3], 1)
    assert decide(waiting, room._replace(pinned=frozenset("a"))).admitted == [1, 3]


def test_more_loads_than_a_step_has_get_a_step_for_themselves():
    several = candidate(1, adapters=[f"cold{i}" for i in range(LOADS_MAX + 1)])
    cold, warm = candidate(2, adapter="cold"), candidate(3, adapter="warm")
    room = ROOM._replace(adapters=20, resident=frozenset({"warm"}))
    assert decide([several, cold, warm], room).admitted == [1, 3]
    assert decide([cold, several, warm], room).admitted == [2, 3]


def test_pages_are_needed_for_those_adapters_alone_that_nobody_uses():
    waiting = [candidate(1, adapters="ab"), candidate(2, adapters="bc")]
    needs = {1: Need(1, (2, 3), 1, 1), 2: Need(1, (3, 4), 1, 1)}
    room = ROOM._replace(adapters=3, pages=11)
    assert decide(waiting, room, needs=needs).admitted == [1, 2]
    assert decide(waiting, room._replace(pages=10), needs=needs).admitted == [1]


def test_one_that_is_not_ready_holds_nobody_up():
    assert decide([candidate(1, is_ready=False), candidate(2)]).admitted == [2]


@pytest.mark.parametrize("room", [{"rows": 2}, {"tokens": 11}, {"pages": 2}], ids=str)
def test_room_is_spent_as_sequences_join(room):
    assert decide([candidate(i) for i in range(4)], ROOM._replace(**room)).admitted == [0, 1]


def test_an_adapter_takes_pages_once_and_none_while_it_is_in_use():
    waiting = [candidate(i, adapter=adapter) for i, adapter in enumerate("aabb")]
    needs = dict.fromkeys(range(4), Need(1, (4,), 1, 1))
    two = ROOM._replace(adapters=2)
    assert decide(waiting, two, needs=needs).admitted == [0, 1]  # 6 pages; b takes 5 more
    assert decide(waiting, two._replace(pages=11), needs=needs).admitted == [0, 1, 2]
    room = two._replace(pinned=frozenset("a"))
    assert decide(waiting, room, needs=needs).admitted == [0, 1, 2, 3]


def test_a_sequence_whose_adapter_does_not_fit_is_not_overtaken():
    waiting = [candidate(1, adapter="a"), candidate(2)]
    assert decide(waiting, needs={1: Need(1, (10,), 1, 1)}).admitted == []


def test_an_answer_may_fill_what_its_adapter_leaves():
    assert output_max(10, 0, pages=4, page_tokens=4) == 6
    assert output_max(10, 1, pages=4, page_tokens=4) == 2


@pytest.mark.parametrize(
    ("prompt_tokens", "adapter_pages", "reason"),
    [
        (16, 0, "a prompt of 16 tokens does not fit: memory has 4 pages of 4 tokens; shorten it"),
        (8, 2, "memory has 4 pages of 4 tokens, of which adapters take 2; shorten it"),
        (1, 4, "adapters take 4 pages and memory has 4 pages of 4 tokens; raise"),
        (1, 9, "adapters take 9 pages"),
    ],
)
def test_what_could_never_run_is_told_what_to_change(prompt_tokens, adapter_pages, reason):
    with pytest.raises(NeverFits, match=reason) as caught:
        output_max(prompt_tokens, adapter_pages, pages=4, page_tokens=4)
    assert "raise kv_cache_memory_mib (on a CPU) or gpu_memory_utilization" in str(caught.value)


def test_the_adapter_that_has_run_longest_gives_up_its_slot_when_it_is_time():
    assert rotate({"a": 100, "b": 90}, 90 + ROTATE_STEPS) == "b"
    assert rotate({"a": 100, "b": 90}, 89 + ROTATE_STEPS) is None
    assert rotate({}, 1000) is None
