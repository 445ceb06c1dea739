from weft.actors.scheduler.outbox import Outbox
from weft.runtime.actor import Send
from weft.runtime.messages import Begin, End, Inspection, Sampled

BEGIN = Begin(1, 1, "0" * 32, "c", "a", "base", 3, [], False, True)
END = End(1, "length", 2, 0)
INSPECTION = Inspection("c", "i", {})


def told(*messages):
    return [Send("detokenizer", message) for message in messages]


def test_tokens_are_told_at_once_and_ends_with_them():
    outbox = Outbox()
    outbox.end(END)
    assert not outbox.is_empty
    assert outbox.step([2], [7], []) == told(Sampled([2], [7], [END]))
    assert outbox.is_empty


def test_a_step_of_which_nothing_is_to_be_told_sends_nothing():
    assert Outbox().step([], [], []) == []


def test_tokens_wait_for_what_began_before_them():
    outbox = Outbox()
    outbox.begin(BEGIN)
    assert outbox.step([1], [7], []) == []
    assert outbox.flush(1) == told(BEGIN)
    assert outbox.flush(9) == told(Sampled([1], [7]))
    assert outbox.is_empty


def test_ends_are_told_last_and_only_where_there_is_room():
    outbox = Outbox()
    outbox.begin(BEGIN)
    outbox.end(END)
    assert outbox.flush(0) == []
    assert outbox.flush(1) == told(BEGIN)
    assert not outbox.is_empty
    assert outbox.flush(1) == told(Sampled([], [], [END]))
    assert outbox.flush(1) == []


def test_an_inspection_follows_every_end_before_it():
    outbox = Outbox()
    outbox.end(END)
    outbox.inspection(INSPECTION)
    assert outbox.flush(9) == told(Sampled([], [], [END]), INSPECTION)
