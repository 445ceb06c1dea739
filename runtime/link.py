"""One side of a link between two processes: sequence numbers, credit and epochs. No I/O.

Every edge of the topology is a link, both ways. The side that connects says ``Hello``, the bound
side ``Welcome``; each names the window it grants. A side may have at most that many messages
unacknowledged; more wait in its outbox. Acknowledgements ride on every frame, and on an ``Ack`` of
their own once half a window has been taken without anything to send back.
"""

from __future__ import annotations

from collections import deque

from weft.runtime.codec import Envelope, encode
from weft.runtime.messages import Ack, Goodbye, Hello, Message, Welcome


class LinkError(Exception):
    """The peer broke the link's rules. ``reason`` is one of a few words, fit to count by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class Link:
    """Frames in, messages out, and the other way round.

    Invariants, checked by ``check``:
      * acknowledged <= sent, and sent - acknowledged <= peer_window;
      * the outbox is empty unless the window is used up or the link is not open.
    """

    def __init__(self, *, epoch: int, window: int, connects: bool, outbox_max: int = 4096) -> None:
        """``window`` is what this side grants; ``outbox_max`` bounds what waits for credit."""
        assert window > 1, "an Ack is sent for half a window"
        self.is_open = False
        self.peer_epoch = 0
        self._epoch = epoch
        self._window = window
        self._connects = connects
        self._outbox_max = outbox_max
        self._outbox: deque[Message] = deque()
        self._peer_window = 0
        self._sent = 0
        self._acknowledged = 0  # of what was sent, by the peer
        self._taken = 0  # of what the peer sent
        self._told = 0  # the last acknowledgement that the peer has seen

    @property
    def room(self) -> int:
        """Messages that would leave at once."""
        if not self.is_open:
            return 0
        return max(0, self._peer_window - (self._sent - self._acknowledged) - len(self._outbox))

    @property
    def waiting(self) -> int:
        """Messages that wait for credit, or for the link to open."""
        return len(self._outbox)

    @property
    def is_flushed(self) -> bool:
        """Whether nothing waits."""
        return not self._outbox

    def open(self) -> list[bytes]:
        """Return the first frame of the side that connects."""
        assert self._connects
        return [self._control(Hello(self._window))]

    def send(self, message: Message) -> list[bytes]:
        """Return the frames to transmit now; the message waits if there is no credit."""
        assert len(self._outbox) < self._outbox_max, (
            f"{len(self._outbox)} messages wait: the actor ignores the room of its link"
        )
        self._outbox.append(message)
        return self._flush()

    def probe(self) -> list[bytes]:
        """Return a frame that says nothing new: it fails to be delivered if the peer is gone."""
        return [self._control(Ack())] if self.is_open else []

    def close(self) -> list[bytes]:
        """Return the frame that tells the peer that this is on purpose."""
        return [self._control(Goodbye())] if self.is_open else []

    def receive(
        self, envelope: Envelope, message: Message | None
    ) -> tuple[Message | None, list[bytes]]:
        """Take in one decoded frame: return the actor's message, if it is one, and replies.

        None stands for a message that could not be read: it has a number, which those that follow
        count on. Raises ``LinkError`` for a frame that must be dropped.
        """
        match message:
            case Hello(window) | Welcome(window):
                return None, self._opened(envelope, window, isinstance(message, Hello))
            case _ if not self.is_open:
                raise LinkError("unopened", f"{type(message).__name__} before Hello")
        if envelope.source_epoch != self.peer_epoch or envelope.destination_epoch != self._epoch:
            epochs = f"epochs {envelope.source_epoch}->{envelope.destination_epoch}"
            raise LinkError("fenced", epochs)
        if not self._acknowledged <= envelope.acknowledged <= self._sent:
            raise LinkError("acknowledgement", f"{envelope.acknowledged} of {self._sent}")
        if isinstance(message, Ack | Goodbye):
            self._acknowledged = envelope.acknowledged
            return None, self._flush()
        if envelope.sequence != self._taken + 1:
            raise LinkError("sequence", f"{envelope.sequence} after {self._taken}")
        self._acknowledged = envelope.acknowledged
        self._taken += 1
        replies = self._flush()
        if self._taken - self._told >= (self._window + 1) // 2:
            replies.append(self._control(Ack()))
        return message, replies

    def check(self) -> None:
        """Assert the invariants."""
        assert 0 <= self._acknowledged <= self._sent
        assert self._sent - self._acknowledged <= self._peer_window or not self.is_open
        assert not (self._outbox and self.room)

    def _opened(self, envelope: Envelope, window: int, is_hello: bool) -> list[bytes]:
        if is_hello == self._connects:
            raise LinkError("handshake", "two sides of the same kind")
        if self.is_open:
            raise LinkError("handshake", "the link is open already")
        if window < 2:
            raise LinkError("handshake", f"a window of {window}")
        self.is_open = True
        self.peer_epoch = envelope.source_epoch
        self._peer_window = window
        replies = [] if self._connects else [self._control(Welcome(self._window))]
        return replies + self._flush()

    def _flush(self) -> list[bytes]:
        frames = []
        while self._outbox and self.is_open and self._sent - self._acknowledged < self._peer_window:
            self._sent += 1
            frames.append(self._frame(self._outbox.popleft(), self._sent))
        return frames

    def _control(self, message: Message) -> bytes:
        return self._frame(message, 0)

    def _frame(self, message: Message, sequence: int) -> bytes:
        self._told = self._taken
        return encode(
            message,
            source_epoch=self._epoch,
            destination_epoch=self.peer_epoch,
            sequence=sequence,
            acknowledged=self._taken,
        )
