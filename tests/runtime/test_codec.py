import contextlib

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.runtime.codec import FRAME_BYTES_MAX, BadFrame, Decoder, encode
from weft.runtime.messages import (
    Catalog,
    ChatMessage,
    End,
    Goodbye,
    Join,
    ListModels,
    RowSampling,
    Sampled,
    Sampling,
    SchedulerInbox,
    Step,
    StepDone,
    Submit,
    TokenizerInbox,
)

SUBMIT = Submit(
    "a",
    model="kitten",
    messages=[ChatMessage(role="user", content="häl\u2028lo")],
    sampling=Sampling(temperature=0.5, stop=["\n"], logit_bias={7: -1.5}),
)


def frame_of(message, **header):
    defaults = {
        "source_epoch": 1, "destination_epoch": 2, "sequence": 3, "acknowledged": 4,
    }  # fmt: skip
    return encode(message, **(defaults | header))


def test_a_frame_decodes_to_what_was_encoded():
    envelope, message = Decoder(TokenizerInbox)(frame_of(SUBMIT))
    assert message == SUBMIT
    assert (envelope.source_epoch, envelope.destination_epoch) == (1, 2)
    assert (envelope.sequence, envelope.acknowledged) == (3, 4)


def test_every_messagepack_library_reads_a_frame_as_the_same_plain_values():
    step = Step(7, joins=[Join(1, [], 0, [5], RowSampling(0.0, 1.0, 0, 0.0, 9), 0, 3, None)])
    for message in (SUBMIT, step, Sampled([1], [2], [End(1, "stop", 4, 0)])):
        version, *header, body = msgpack.unpackb(frame_of(message), strict_map_key=False)
        assert [version, *header] == [1, 1, 2, 3, 4]
        assert body[0] == type(message).__name__
        assert body == msgspec.to_builtins(message)


def test_link_control_is_part_of_every_inbox():
    assert Decoder(TokenizerInbox)(frame_of(Goodbye()))[1] == Goodbye()


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "malformed"),
        (b"\x96", "malformed"),
        (b"\x96\x01", "malformed"),
        (b"\x95\x01\x01\x00\x00\x00", "malformed"),
        (b"\x96\x02" + frame_of(ListModels("a"))[2:], "version"),
        (frame_of(ListModels("a"))[:-1], "malformed"),
        (frame_of(ListModels("a")) + b"\xc0", "malformed"),
        (frame_of(StepDone(1, [1])), "malformed"),  # not this inbox's
        (frame_of(ListModels("a")).replace(b"ListModels", b"ListMorons"), "malformed"),
        (frame_of(ListModels("ab")).replace(b"ab", b"\xff\xfe"), "malformed"),
        (frame_of(Submit("a", prompt=[1])).replace(b"\xa1a", b"\x91\x91"), "malformed"),
        (b"\x96\x01\x01\x01\x01\x01" + b"\x91" * 100_000, "malformed"),  # nested too deep
        (b"\x96\x01\x01\x01\x01\x01\xdd\xff\xff\xff\xff", "malformed"),  # four billion elements
        (bytes(FRAME_BYTES_MAX + 1), "oversized"),
    ],
)
def test_a_bad_frame_is_refused_with_its_reason(frame, reason):
    with pytest.raises(BadFrame) as caught:
        Decoder(TokenizerInbox)(frame)
    assert caught.value.reason == reason


def test_a_message_that_no_receiver_would_take_is_not_encoded():
    with pytest.raises(ValueError, match="over"):
        frame_of(ListModels("a" * FRAME_BYTES_MAX))


@settings(derandomize=True, deadline=None, max_examples=500)
@given(st.binary(max_size=64).map(lambda tail: b"\x96\x01" + tail) | st.binary(max_size=64))
def test_any_bytes_decode_or_raise_bad_frame(frame):
    with contextlib.suppress(BadFrame):
        Decoder(SchedulerInbox)(frame)


def test_unknown_fields_are_refused_rather_than_ignored():
    frame = msgspec.msgpack.encode([1, 1, 2, 3, 4, ["ListModels", "a", "more"]])
    with pytest.raises(BadFrame):
        Decoder(TokenizerInbox)(frame)


def test_a_request_without_a_prompt_is_refused_by_the_decoder():
    values = ["Generate", "id", "c", "a", "m", [], [], "", 1, 1, [], [1.0, 1.0, 0, 0.0, 0]]
    frame = msgspec.msgpack.encode([1, 1, 2, 3, 4, values])
    with pytest.raises(BadFrame, match="prompt is empty"):
        Decoder(SchedulerInbox)(frame)
    assert Decoder(TokenizerInbox)(frame_of(Catalog([])))[1] == Catalog([])
