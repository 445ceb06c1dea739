"""What waits for one client: merged, so that a slow reader costs no more than its own text."""

from __future__ import annotations

from collections import deque

from weft.actors.detokenizer.sequence import Chosen, Piece
from weft.runtime.messages import (
    Accepted,
    End,
    Report,
    Sequence,
    Text,
    TextLogprobs,
)

# About how large a message of text may grow, of the 32 MiB that a frame holds.
TEXT_BYTES_MAX = 4 * 1024 * 1024

# Text in one string of an outbox; as a message it fits TEXT_BYTES_MAX.
PIECE_CHARACTERS_MAX = 64 * 1024

# Answers to Inspect that wait; older ones are out of date.
REPORTS_MAX = 16

# Beside its strings, about what a log probability or a text costs in a frame.
_ENTRY_BYTES = 32


class _Unsent:
    """What waits of one sequence."""

    def __init__(self) -> None:
        self.pieces: deque[Piece] = deque()
        self.end: End | None = None

    def add(self, piece: Piece) -> None:
        last = self.pieces[-1] if self.pieces else None
        if (
            last is not None
            and not (last.logprobs or piece.logprobs)
            and len(last.text) + len(piece.text) <= PIECE_CHARACTERS_MAX
        ):
            self.pieces[-1] = Piece(last.text + piece.text, [])
        else:
            self.pieces.append(piece)


class Outbox:
    """One client's messages in order: acceptances first, then text, then reports."""

    def __init__(self) -> None:
        self.live: set[Sequence] = set()  # sequences that are not over
        self.stalled_since_ns: int | None = None
        self.is_given_up = False  # what waits is for a client that may never read again
        self._accepted: deque[Accepted] = deque()
        self._unsent: dict[Sequence, _Unsent] = {}
        self._reports: deque[Report] = deque(maxlen=REPORTS_MAX)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be sent."""
        return not (self._accepted or self._unsent or self._reports)

    @property
    def characters(self) -> int:
        """Characters that wait."""
        return sum(len(p.text) for unsent in self._unsent.values() for p in unsent.pieces)

    def accept(self, accepted: Accepted) -> None:
        """Queue an acceptance; its sequences are live."""
        self.is_given_up = False
        first = accepted.first_sequence
        self.live.update(range(first, first + accepted.choices))
        self._accepted.append(accepted)

    def report(self, report: Report) -> None:
        """Queue the answer to an inspection."""
        self._reports.append(report)

    def add(self, sequence: Sequence, piece: Piece) -> None:
        """Queue text of a live sequence."""
        assert sequence in self.live, f"sequence {sequence} is over"
        if piece.text or piece.logprobs:
            self._unsent.setdefault(sequence, _Unsent()).add(piece)

    def end(self, end: End) -> None:
        """Queue the end of a sequence, after its text."""
        self.live.remove(end.sequence)
        self._unsent.setdefault(end.sequence, _Unsent()).end = end

    def give_up(self, ends: list[End]) -> None:
        """End every live sequence, and drop what its client has not read of it."""
        for end in ends:
            self._unsent.pop(end.sequence, None)
            self.end(end)
        assert not self.live
        self.is_given_up = True

    def take(self) -> Accepted | Text | Report:
        """Return the next message. The outbox must not be empty."""
        if self._accepted:
            return self._accepted.popleft()
        if self._unsent:
            return self._take_text()
        return self._reports.popleft()

    def check(self) -> None:
        """Assert that every sequence that waits has something to send, and is over with its end."""
        for sequence, unsent in self._unsent.items():
            assert unsent.pieces or unsent.end, f"nothing waits for sequence {sequence}"
            assert (unsent.end is None) == (sequence in self.live)

    def _take_text(self) -> Text:
        sequences: list[Sequence] = []
        texts: list[str] = []
        ends: list[End] = []
        logprobs: list[TextLogprobs] = []
        bytes_left = TEXT_BYTES_MAX
        for sequence in list(self._unsent):
            if bytes_left <= 0:
                break
            unsent = self._unsent[sequence]
            parts = []
            while unsent.pieces and bytes_left > 0:
                piece = unsent.pieces.popleft()
                parts.append(piece.text)
                logprobs += [_with_index(chosen, len(sequences)) for chosen in piece.logprobs]
                bytes_left -= _bytes(piece)
            # An end alone is listed too: its text is empty.
            sequences.append(sequence)
            texts.append("".join(parts))
            bytes_left -= _ENTRY_BYTES
            if not unsent.pieces:
                del self._unsent[sequence]
                if unsent.end is not None:
                    ends.append(unsent.end)
        return Text(sequences, texts, ends, logprobs)


def _bytes(piece: Piece) -> int:
    logprobs = sum(
        len(chosen.token_bytes) * 2
        + _ENTRY_BYTES
        + sum(len(raw) * 2 + _ENTRY_BYTES for _, raw, _ in chosen.top)
        for chosen in piece.logprobs
    )
    return len(piece.text) * 4 + logprobs


def _with_index(chosen: Chosen, index: int) -> TextLogprobs:
    return TextLogprobs(index, chosen.token, chosen.token_bytes, chosen.logprob, chosen.top)
