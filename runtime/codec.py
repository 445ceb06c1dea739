"""Frames: one envelope and one message each, in MessagePack. One function decodes, for everyone.

A frame from outside is data, never a reason to die: whatever is wrong with it ends in ``BadFrame``.
"""

from __future__ import annotations

import re
from typing import Any, get_args

import msgspec

from weft.runtime.messages import LinkInbox, Message

PROTOCOL_VERSION = 1

# The largest prompt (a few million characters) and the largest step fit many times over.
FRAME_BYTES_MAX = 32 * 1024 * 1024

# What is quoted of a message that cannot be read: a label's limit, and a line of a log.
LABEL_CHARACTERS_MAX = 1024
DETAIL_CHARACTERS_MAX = 256

# An envelope is an array of six, and its first element the version: both are single bytes.
_ARRAY_OF_SIX = 0x96


class BadFrame(Exception):
    """A frame that cannot be read. ``reason`` is one of a few words, fit to count by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class BadMessage(BadFrame):
    """A frame in order whose message cannot be read: its sender can be told, if it is a client.

    ``label`` is the message's own, None if there is none to be found. ``param`` is the field at
    fault, "" for the whole.
    """

    def __init__(self, envelope: Envelope, label: str | None, param: str, detail: str) -> None:
        super().__init__("malformed", f"{param}: {detail}" if param else detail)
        self.envelope = envelope
        self.label = label
        self.param = param


class Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What every frame says beside its message.

    ``source_epoch`` counts the sender's lives, ``destination_epoch`` names the life of the receiver
    that the sender means (0 until it knows). ``sequence`` numbers the messages of one direction of
    a link from 1; link control carries 0. ``acknowledged`` is the highest sequence that the sender
    has taken from the other direction, and so gives the receiver credit.
    """

    version: int
    source_epoch: int
    destination_epoch: int
    sequence: int
    acknowledged: int
    message: msgspec.Raw


_encoder = msgspec.msgpack.Encoder()
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)


class Decoder:
    """Decodes the frames of one actor's inbox; ``inbox`` is a union of message types."""

    def __init__(self, inbox: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(inbox | LinkInbox).decode
        self._kinds = {kind.__name__: kind for kind in get_args(inbox | LinkInbox)}

    def __call__(self, frame: bytes | memoryview) -> tuple[Envelope, Message]:
        """Return the envelope and its message, or raise ``BadFrame`` and nothing else.

        It is a ``BadMessage`` if the envelope could be read.
        """
        if len(frame) > FRAME_BYTES_MAX:
            raise BadFrame("oversized", f"{len(frame)} bytes, {FRAME_BYTES_MAX} are allowed")
        if len(frame) < 2 or frame[0] != _ARRAY_OF_SIX:
            raise BadFrame("malformed", "not an envelope")
        if frame[1] != PROTOCOL_VERSION:
            raise BadFrame("version", f"version {frame[1]}, this is {PROTOCOL_VERSION}")
        # Decoders raise more than their own errors on hostile bytes (UnicodeDecodeError,
        # RecursionError): this is the boundary where every one of them becomes one word.
        try:
            envelope = _envelope_decoder.decode(frame)
        except Exception as error:  # noqa: BLE001
            raise BadFrame("malformed", str(error)) from None
        try:
            return envelope, self._decode(envelope.message)
        except Exception as error:  # noqa: BLE001
            raise self._bad_message(envelope, str(error)) from None

    def _bad_message(self, envelope: Envelope, detail: str) -> BadMessage:
        """Return the error with what can be told of a message that could not be read."""
        try:
            name, label, *_ = msgspec.msgpack.decode(envelope.message)
        except Exception:  # noqa: BLE001
            name = label = None
        if not isinstance(label, str) or len(label) > LABEL_CHARACTERS_MAX:
            label = None
        detail, _, place = detail.rpartition(" - at ") if " - at " in detail else (detail, "", "")
        # msgspec's path to a field of a message is `$[2].key`, counted from the message's name.
        found = re.search(r"\$\[(\d+)\]([^`]*)", place)
        kind = self._kinds.get(name) if isinstance(name, str) else None
        param = ""
        if found and kind and 0 < int(found[1]) <= len(kind.__struct_fields__):
            param = kind.__struct_fields__[int(found[1]) - 1] + found[2]
        return BadMessage(envelope, label, param, detail[:DETAIL_CHARACTERS_MAX])


def encode(
    message: Message,
    *,
    source_epoch: int,
    destination_epoch: int,
    sequence: int,
    acknowledged: int,
) -> bytes:
    """Return the frame of one message. Raises ``ValueError`` if no receiver would take it."""
    body = msgspec.Raw(_encoder.encode(message))
    frame = _encoder.encode(
        Envelope(PROTOCOL_VERSION, source_epoch, destination_epoch, sequence, acknowledged, body)
    )
    if len(frame) > FRAME_BYTES_MAX:
        raise ValueError(f"{type(message).__name__} of {len(frame)} bytes, over {FRAME_BYTES_MAX}")
    return frame
