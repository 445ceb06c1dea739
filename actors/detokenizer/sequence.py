"""One sequence from token ids to text that may be shown, its logprobs beside it."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from weft.actors.detokenizer.stops import StopScanner
from weft.actors.detokenizer.vocabulary import TextStream, Vocabulary
from weft.runtime.messages import TokenLogprobs


class Chosen(NamedTuple):
    """A token with its log probability and those of its rivals, as text and bytes."""

    token: str
    token_bytes: bytes
    logprob: float
    top: list[tuple[str, bytes, float]]


class Piece(NamedTuple):
    """Text that may be shown, and the logprobs of the tokens that it is made of."""

    text: str
    logprobs: list[Chosen]


class _Waiting(NamedTuple):
    chosen: Chosen
    start: int  # characters before the token
    end: int | None  # characters up to where it is complete; None: it is not


class SequenceText:
    """Decodes tokens, scans for stop strings, and keeps logprobs beside their text.

    ``is_stopped`` becomes true at a stop string; nothing is fed any more then.
    """

    def __init__(self, vocabulary: Vocabulary, stream: TextStream, scanner: StopScanner) -> None:
        self.output_tokens = 0
        self.is_stopped = False
        self._vocabulary = vocabulary
        self._stream = stream
        self._scanner = scanner
        self._decoded = 0  # characters
        self._passed = 0  # characters, of these
        self._waiting: deque[_Waiting] = deque()  # at most as long as the text that is held back

    def feed(self, token: int, logprobs: TokenLogprobs | None) -> Piece:
        """Take in one sampled token and return what may be shown."""
        assert not self.is_stopped
        self.output_tokens += 1
        start = self._decoded
        text = self._stream.feed(token)
        self._decoded += len(text)
        if text:
            self._settle(self._decoded)
        if logprobs is not None:
            self._waiting.append(_Waiting(self._chosen(token, logprobs), start, None))
        if not self._stream.is_pending:
            self._settle(self._decoded)
        return self._pass(text)

    def feed_hidden(self) -> None:
        """Count a token that ends the sequence and is no part of its text."""
        self.output_tokens += 1

    def finish(self) -> Piece:
        """Return everything that was held back; the sequence is over."""
        if self.is_stopped:
            return Piece("", [])
        text = self._stream.finish()
        self._decoded += len(text)
        self._settle(self._decoded)
        piece = self._pass(text)
        if self.is_stopped:
            return piece
        held = self._scanner.finish()
        rest = [waiting.chosen for waiting in self._waiting]
        self._waiting.clear()
        return Piece(piece.text + held, piece.logprobs + rest)

    def _pass(self, text: str) -> Piece:
        passed, self.is_stopped = self._scanner.feed(text)
        self._passed += len(passed)
        logprobs = []
        while self._waiting and self._may_pass(self._waiting[0]):
            logprobs.append(self._waiting.popleft().chosen)
        if self.is_stopped:
            self._waiting.clear()
        return Piece(passed, logprobs)

    def _may_pass(self, waiting: _Waiting) -> bool:
        # A token across the beginning of a stop string has text on this side: it stays.
        if self.is_stopped and waiting.start < self._passed:
            return True
        return waiting.end is not None and waiting.end <= self._passed

    def _settle(self, end: int) -> None:
        """Note where the tokens are complete that were not yet."""
        index = len(self._waiting) - 1
        while index >= 0 and self._waiting[index].end is None:
            self._waiting[index] = self._waiting[index]._replace(end=end)
            index -= 1

    def _chosen(self, token: int, logprobs: TokenLogprobs) -> Chosen:
        def shown(token: int) -> tuple[str, bytes]:
            raw = self._vocabulary.bytes_of(token)
            return raw.decode(errors="replace"), raw

        top = [
            (*shown(rival), logprob)
            for rival, logprob in zip(logprobs.top_tokens, logprobs.top, strict=True)
        ]
        return Chosen(*shown(token), logprobs.chosen, top)
