"""The ingress protocol's frames and links, as a client speaks them. No I/O.

One link goes to the tokenizer, for requests and what is refused; one to the detokenizer, for what
is answered. INGRESS.md describes both.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgpack

from weft.runtime.client.events import Disconnected

PROTOCOL_VERSION = 1
FRAME_BYTES_MAX = 32 * 1024 * 1024

# Messages that weft may send beyond those acknowledged.
WINDOW = 1024

# A client lives once: it never takes up a former one's links.
_EPOCH = 1

# Nesting, string and collection sizes are bounded by the frame's own size.
_UNPACK_LIMITS = {
    "max_str_len": FRAME_BYTES_MAX,
    "max_bin_len": FRAME_BYTES_MAX,
    "max_array_len": FRAME_BYTES_MAX,
    "max_map_len": FRAME_BYTES_MAX,
}

Fields = list[Any]


class Link:
    """One of the two links: messages to frames and back, sequence numbers, credit."""

    def __init__(self, peer: str) -> None:
        """``peer`` is "tokenizer" or "detokenizer"."""
        self.peer = peer
        self.is_open = False
        self.outgoing: deque[bytes] = deque()
        self._waiting: deque[Fields] = deque()  # for credit
        self._peer_epoch = 0
        self._peer_window = 0
        self._sent = 0
        self._acknowledged = 0  # of what was sent, by the peer
        self._taken = 0  # of what the peer sent
        self._told = 0  # the last acknowledgement that the peer has seen
        self._control("Hello", WINDOW)

    @property
    def is_flushed(self) -> bool:
        """Whether no message waits for credit."""
        return not self._waiting

    def send(self, fields: Fields) -> None:
        """Send a message, ``[name, field, …]``, as soon as there is credit.

        Raises ``ValueError`` if it is too large for a frame.
        """
        # Checked here, where the caller can still be told; the envelope adds 50 bytes at most.
        size = len(msgpack.packb(fields)) + 50
        if size > FRAME_BYTES_MAX:
            raise ValueError(f"a message of {size} bytes; at most {FRAME_BYTES_MAX} are taken")
        self._waiting.append(fields)
        self._flush()

    def close(self) -> None:
        """Tell the peer that this is on purpose."""
        if self.is_open:
            self._control("Goodbye")

    def receive(self, frame: bytes) -> tuple[str, Fields] | None:
        """Take in a frame; return the name and the fields of its message unless it is control.

        Raises ``Disconnected`` when the peer says goodbye, or breaks the protocol.
        """
        try:
            version, source, _, sequence, acknowledged, message = msgpack.unpackb(
                frame, **_UNPACK_LIMITS
            )
            name, *fields = message
        except (ValueError, TypeError) as error:
            raise Disconnected(f"{self.peer} sent what is no frame: {error}") from None
        if version != PROTOCOL_VERSION:
            raise Disconnected(
                f"{self.peer} speaks version {version} of the protocol, this is {PROTOCOL_VERSION}"
            )
        if name == "Goodbye":
            why = "has ended" if self.is_open else "has too many clients"
            raise Disconnected(f"weft's {self.peer} {why}")
        if name == "Welcome":
            self.is_open, self._peer_epoch, self._peer_window = True, source, fields[0]
            self._flush()
            return None
        self._acknowledged = acknowledged
        self._flush()
        if name == "Ack":
            return None
        if sequence != self._taken + 1:
            raise Disconnected(f"{self.peer}: message {sequence} came after {self._taken}")
        self._taken = sequence
        if self._taken - self._told >= WINDOW // 2:
            self._control("Ack")
        return name, fields

    def _flush(self) -> None:
        while (
            self._waiting and self.is_open and self._sent - self._acknowledged < self._peer_window
        ):
            self._sent += 1
            self._frame(self._waiting.popleft(), self._sent)

    def _control(self, *fields: Any) -> None:
        self._frame(list(fields), 0)

    def _frame(self, message: Fields, sequence: int) -> None:
        self._told = self._taken
        envelope = [PROTOCOL_VERSION, _EPOCH, self._peer_epoch, sequence, self._taken, message]
        self.outgoing.append(msgpack.packb(envelope))
