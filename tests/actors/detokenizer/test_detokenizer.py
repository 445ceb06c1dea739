import random

import pytest

from tests.actors.made_tokenizers import TEXTS
from weft.actors.detokenizer import outbox
from weft.actors.detokenizer.actor import STALLED_ERROR, STALLED_MAX_NS, Detokenizer
from weft.actors.detokenizer.vocabulary import Vocabulary
from weft.runtime.actor import Send, Turn
from weft.runtime.messages import (
    Accepted,
    Begin,
    ClientGone,
    End,
    Inspection,
    Report,
    Sampled,
    StopFound,
    Text,
    TokenLogprobs,
)


class Desk:
    """A detokenizer with everything it sent, per receiver."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.actor = Detokenizer(Vocabulary(tokenizer.backend_tokenizer))
        self.room = {"ann": 100, "bob": 100, "scheduler": 100}
        self.now_ns = 0
        self.sent = []

    def hear(self, message, *, advance=True):
        assert self.actor.receive("scheduler", message, self.now_ns) == []
        return self.advance() if advance else []

    def advance(self):
        sends = self.actor.advance(Turn(self.now_ns, lambda peer: self.room.get(peer, 0)))
        self.sent += sends
        return sends

    def begin(self, first=1, *, choices=1, client="ann", stop=(), include_stop=False, skip=True):
        begin = Begin(
            first, choices, "id", client, f"label{first}", "base", 3, list(stop), include_stop, skip
        )
        return self.hear(begin)

    def encode(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def say(self, sequence, text, *, reason=None):
        """Sample the tokens of a text one step at a time."""
        for token in self.encode(text):
            self.hear(Sampled([sequence], [token]))
        if reason:
            self.end(sequence, reason)

    def end(self, sequence, reason="length", *, cached=0):
        return self.hear(Sampled([], [], [End(sequence, reason, 7, cached)]))

    def text(self, sequence):
        return "".join(
            part
            for send in self.sent
            if isinstance(send.message, Text)
            for number, part in zip(send.message.sequences, send.message.texts, strict=True)
            if number == sequence
        )

    def all(self, kind):
        return [send.message for send in self.sent if isinstance(send.message, kind)]

    def ends(self):
        return [end for text in self.all(Text) for end in text.ends]

    def stop_found(self):
        return self.all(StopFound)


@pytest.fixture(scope="module")
def tokenizers(reference):
    return {kind: reference(kind) for kind in ("byte_level", "metaspace")}


@pytest.fixture(params=["byte_level", "metaspace"])
def desk(request, tokenizers):
    desk = Desk(tokenizers[request.param])
    yield desk
    desk.actor.check()


def test_a_request_is_accepted_then_shown_then_ended(desk):
    assert desk.begin() == [Send("ann", Accepted("label1", "id", 1, 1, 3))]
    desk.say(1, TEXTS[3], reason="length")
    assert desk.text(1) == TEXTS[3]
    assert desk.ends() == [End(1, "length", 7, 0)]
    assert desk.actor.is_idle


def test_a_step_is_one_message_for_each_client(desk):
    desk.begin(1, choices=2)
    desk.begin(3, client="bob")
    a, b = desk.encode("a")[-1], desk.encode("b")[-1]
    sends = desk.hear(Sampled([1, 2, 3], [a, b, a], [End(3, "length", 1, 0)]))
    assert sorted((send.to, tuple(send.message.sequences)) for send in sends) == [
        ("ann", (1, 2)),
        ("bob", (3,)),
    ]


def test_the_token_that_ends_a_sequence_is_not_shown(desk):
    desk.begin(skip=False)
    desk.say(1, "done")
    eos = desk.tokenizer.eos_token_id
    desk.hear(Sampled([1], [eos], [End(1, "stop", 5, 0)]))
    assert desk.text(1) == "done"
    assert desk.ends() == [End(1, "stop", 5, 0)]


def test_incomplete_bytes_are_shown_when_the_sequence_is_over(desk):
    desk.begin()
    ids = desk.encode("🦄")
    desk.hear(Sampled([1] * (len(ids) - 1), ids[:-1]))
    assert desk.text(1) == ""
    desk.end(1)
    assert desk.text(1) == desk.tokenizer.decode(ids[:-1]) != ""


def test_a_stop_string_across_tokens_stops_the_sequence_once(desk):
    desk.begin(stop=["dog. It"])
    desk.say(1, TEXTS[0])
    assert desk.text(1) == TEXTS[0].split("dog. It")[0]
    (found,) = desk.stop_found()
    shown = desk.tokenizer.decode(desk.encode(TEXTS[0])[: found.output_tokens])
    assert "dog. It" in shown
    assert "dog. It" not in desk.tokenizer.decode(desk.encode(TEXTS[0])[: found.output_tokens - 1])

    desk.end(1, "stop")
    assert desk.ends() == [End(1, "stop", found.output_tokens, 0)]
    assert desk.actor.is_idle


def test_a_stop_string_may_be_shown(desk):
    desk.begin(stop=["fox"], include_stop=True)
    desk.say(1, TEXTS[0], reason="stop")
    assert desk.text(1) == "The quick brown fox"


def test_what_could_begin_a_stop_string_is_shown_if_none_came_of_it(desk):
    desk.begin(stop=["dog. XYZ"])
    desk.say(1, "the lazy dog.")
    assert desk.text(1) == "the lazy "
    desk.end(1)
    assert desk.text(1) == "the lazy dog."


def test_an_end_by_length_that_crossed_a_stop_string_is_a_stop(desk):
    desk.begin(stop=["fox"])
    ids = desk.encode("a fox runs")
    for token in ids:
        desk.hear(Sampled([1], [token]))
    stopped_at = desk.stop_found()[0].output_tokens
    desk.hear(Sampled([], [], [End(1, "length", len(ids), 2)]))
    assert desk.ends() == [End(1, "stop", stopped_at, 2)]


def test_a_stop_string_in_the_last_step_is_not_reported_to_the_scheduler(desk):
    desk.begin(stop=["fox"])
    ids = desk.encode("a fox")
    ends = [End(1, "length", len(ids), 0)]
    desk.hear(Sampled([1] * len(ids), ids, ends))
    assert desk.stop_found() == []
    assert desk.ends()[0].reason == "stop"


def test_text_for_a_slow_reader_is_merged_and_lost_nothing(desk):
    desk.begin()
    desk.room["ann"] = 0
    desk.say(1, TEXTS[3] * 3, reason="length")
    assert not desk.all(Text)
    assert not desk.actor.is_idle
    desk.room["ann"] = 1
    desk.advance()
    assert len(desk.all(Text)) == 1
    assert desk.text(1) == desk.tokenizer.decode(desk.encode(TEXTS[3] * 3))
    assert desk.actor.is_idle


def test_text_beyond_a_messages_size_is_split(desk, monkeypatch):
    monkeypatch.setattr(outbox, "TEXT_BYTES_MAX", 64)
    monkeypatch.setattr(outbox, "PIECE_CHARACTERS_MAX", 8)
    desk.room["ann"] = 0
    desk.begin(1, choices=2)
    desk.say(1, TEXTS[0], reason="length")
    desk.say(2, TEXTS[1], reason="length")
    desk.room["ann"] = 100
    desk.advance()
    assert len(desk.all(Text)) > 4
    assert all(len("".join(text.texts)) <= 64 for text in desk.all(Text))
    assert (desk.text(1), desk.text(2)) == (TEXTS[0], TEXTS[1])
    assert [end.sequence for end in desk.ends()] == [1, 2]


def test_a_lost_client_is_told_to_the_scheduler_and_forgotten(desk):
    desk.begin(1, choices=2)
    desk.begin(3, client="bob")
    desk.say(1, "some text")
    assert desk.actor.lost("ann", 0) == []
    assert desk.advance() == [Send("scheduler", ClientGone("ann"))]
    desk.say(1, "more", reason="cancelled")
    desk.say(3, "for bob", reason="length")
    assert desk.text(3) == "for bob"
    assert desk.actor.is_idle


def test_a_client_that_never_reads_is_given_up(desk):
    desk.begin(client="nobody")
    desk.now_ns = STALLED_MAX_NS
    assert desk.advance() == []
    desk.now_ns = 2 * STALLED_MAX_NS + 1
    assert desk.advance() == [Send("scheduler", ClientGone("nobody"))]
    assert desk.actor.is_idle


def test_a_client_that_reads_again_hears_that_it_was_given_up(desk):
    desk.begin(1, stop=["never"])
    desk.say(1, "read ")
    desk.room["ann"] = 0
    desk.begin(2)
    desk.say(1, "not read")
    desk.say(2, "done", reason="length")
    desk.begin(3)
    for desk.now_ns in (0, STALLED_MAX_NS + 1):
        desk.advance()
    assert desk.all(ClientGone) == [ClientGone("ann")]
    assert desk.actor.is_idle
    desk.say(1, "late", reason="cancelled")
    desk.room["ann"] = 100
    desk.advance()
    assert [accepted.first_sequence for accepted in desk.all(Accepted)] == [1, 2, 3]
    assert (desk.text(1), desk.text(2), desk.text(3)) == ("read ", "done", "")
    reasons = {end.sequence: (end.reason, end.error) for end in desk.ends()}
    assert reasons == {
        1: ("error", STALLED_ERROR), 2: ("length", None), 3: ("error", STALLED_ERROR),
    }  # fmt: skip
    desk.begin(4)
    desk.say(4, "as before", reason="length")
    assert desk.text(4) == "as before"
    assert desk.all(ClientGone) == [ClientGone("ann")]


def test_what_begins_for_a_client_that_was_given_up_is_given_up_too(desk):
    desk.room["ann"] = 0
    desk.begin(1)
    for desk.now_ns in (0, STALLED_MAX_NS + 1):
        desk.advance()
    desk.begin(2)
    assert desk.all(ClientGone) == [ClientGone("ann")] * 2
    assert desk.actor.is_idle


def test_messages_to_the_scheduler_wait_for_room(desk):
    desk.room["scheduler"] = 0
    desk.begin(stop=["fox"])
    desk.say(1, "a fox")
    desk.actor.lost("bob", 0)
    assert not desk.stop_found()
    desk.room["scheduler"] = 1
    assert [type(send.message) for send in desk.advance()] == [StopFound]
    assert [type(send.message) for send in desk.advance()] == [ClientGone]


def test_an_inspection_ends_as_a_report_with_every_section(desk):
    desk.begin()
    desk.hear(Inspection("bob", "look", {"scheduler": {"x": 1.0}}))
    (report,) = desk.all(Report)
    assert report.label == "look"
    assert report.sections["scheduler"] == {"x": 1.0}
    assert report.sections["detokenizer"]["sequences"] == 1
    desk.end(1)


def logprobs_for(index, token):
    return TokenLogprobs(index, -0.5, [token, 5], [-0.5, -3.0])


@pytest.mark.parametrize("text", [TEXTS[0], TEXTS[3]], ids=["plain", "unicode"])
@pytest.mark.parametrize("stop", [(), ("XX",), ("zy dog", ".")], ids=["none", "unfound", "found"])
def test_logprobs_travel_with_the_text_of_their_tokens(desk, text, stop):
    desk.begin(stop=stop)
    ids = desk.encode(text)
    for token in ids:
        desk.hear(Sampled([1], [token], [], [logprobs_for(0, token)]))
    desk.end(1)

    seen = raw = b""
    for message in desk.all(Text):
        raw += b"".join(entry.token_bytes for entry in message.logprobs)
        seen += message.texts[0].encode()
        # Token by token, never behind the text and never ahead of it by more than a stop string.
        assert raw.strip().startswith(seen.strip())
        assert all(message.sequences[entry.index] == 1 for entry in message.logprobs)
    if not stop or stop == ("XX",):
        assert raw.decode().strip() == text
    else:
        assert len(raw) - len(seen) < 8
    entries = [entry for message in desk.all(Text) for entry in message.logprobs]
    assert all(entry.top[0] == (entry.token, entry.token_bytes, -0.5) for entry in entries)


def test_logprobs_of_a_stopping_token_are_left_out(desk):
    desk.begin()
    token = desk.encode("x")[-1]
    eos = desk.tokenizer.eos_token_id
    desk.hear(Sampled([1], [token], [], [logprobs_for(0, token)]))
    desk.hear(Sampled([1], [eos], [End(1, "stop", 2, 0)], [logprobs_for(0, eos)]))
    entries = [entry for message in desk.all(Text) for entry in message.logprobs]
    assert len(entries) == 1


def test_a_long_random_run_leaves_nothing_behind(desk):
    rng = random.Random(0)
    size = len(desk.tokenizer)
    live, next_sequence, expected = {}, 1, {}
    for _ in range(600):
        desk.room["ann"] = rng.choice([0, 1, 5])
        if len(live) < 8:
            desk.begin(next_sequence, choices=2, client=rng.choice(["ann", "bob"]))
            live |= {next_sequence: [], next_sequence + 1: []}
            next_sequence += 2
        rows = rng.sample(sorted(live), rng.randint(0, len(live)))
        tokens = [rng.randrange(size) for _ in rows]
        for row, token in zip(rows, tokens, strict=True):
            live[row].append(token)
        over = [row for row in rows if rng.random() < 0.1]
        desk.hear(Sampled(rows, tokens, [End(row, "length", 0, 0) for row in over]))
        desk.actor.check()
        for row in over:
            expected[row] = live.pop(row)
    desk.hear(Sampled([], [], [End(row, "cancelled", 0, 0) for row in live]))
    expected |= live
    desk.room["ann"] = 100
    desk.advance()
    assert desk.actor.is_idle
    for row, ids in expected.items():
        assert desk.text(row) == desk.tokenizer.decode(ids, skip_special_tokens=True)
