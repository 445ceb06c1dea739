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
    start: int  # characters decoded before the token


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
        self._passed = 0  # characters of these
        self._waiting: deque[_Waiting] = deque()  # at most as long as the text that is held back

    def feed(self, token: int, logprobs: TokenLogprobs | None) -> Piece:
        """Take in one sampled token and return what may be shown."""
        assert not self.is_stopped
        self.output_tokens += 1
        if logprobs is not None:
            self._waiting.append(_Waiting(self._chosen(token, logprobs), self._decoded))
        text = self._stream.feed(token)
        self._decoded += len(text)
        return self._pass(text)

    def feed_hidden(self) -> None:
        """Count a token that ends the sequence and is no part of its text."""
        self.output_tokens += 1

    def finish(self) -> Piece:
        """Return everything that was held back; the sequence is over."""
        if self.is_stopped:
            return Piece("", [])
        piece = self._pass(self._stream.finish())
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
        # A token belongs to the text in which its first character is shown. One without any text
        # goes with the text after it.
        while self._waiting and self._waiting[0].start < self._passed:
            logprobs.append(self._waiting.popleft().chosen)
        if self.is_stopped:
            self._waiting.clear()
        return Piece(passed, logprobs)

    def _chosen(self, token: int, logprobs: TokenLogprobs) -> Chosen:
        def shown(token: int) -> tuple[str, bytes]:
            raw = self._vocabulary.bytes_of(token)
            return raw.decode(errors="replace"), raw

        top = [
            (*shown(rival), logprob)
            for rival, logprob in zip(logprobs.top_tokens, logprobs.top, strict=True)
        ]
        return Chosen(*shown(token), logprobs.chosen, top)
