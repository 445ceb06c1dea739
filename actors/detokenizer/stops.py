"""Stop strings, found character by character, and the text that could still begin one."""

from __future__ import annotations

from typing import NamedTuple


class StopString:
    """A stop string with its failure table (Knuth, Morris and Pratt, 1977)."""

    def __init__(self, text: str) -> None:
        assert text
        self.text = text
        # fallback[i]: the longest proper prefix of text that ends text[:i].
        self._fallback = [0] * (len(text) + 1)
        matched = 0
        for index in range(1, len(text)):
            matched = self.step(matched, text[index])
            self._fallback[index + 1] = matched

    def step(self, matched: int, character: str) -> int:
        """Return how much of the string ends a text, one character after ``matched`` did."""
        if matched == len(self.text):
            matched = self._fallback[matched]
        while matched and self.text[matched] != character:
            matched = self._fallback[matched]
        return matched + 1 if self.text[matched] == character else 0


class Passed(NamedTuple):
    """What left the scanner."""

    text: str
    is_stopped: bool


class StopScanner:
    """Lets text pass up to the first stop string; holds back any suffix that could begin one.

    The first to be complete wins, of several the longest: so the result does not depend on how the
    text was cut into tokens.
    """

    def __init__(self, stops: list[StopString], *, include_stop: bool) -> None:
        self._stops = stops
        self._include_stop = include_stop
        self._matched = [0] * len(stops)
        self._held = ""

    def feed(self, text: str) -> Passed:
        """Take in text and return what may leave. Not to be called after a stop."""
        if not self._stops:
            return Passed(text, is_stopped=False)
        window = self._held + text
        for index in range(len(self._held), len(window)):
            self._matched = [
                stop.step(matched, window[index])
                for stop, matched in zip(self._stops, self._matched, strict=True)
            ]
            complete = [
                len(stop.text)
                for stop, matched in zip(self._stops, self._matched, strict=True)
                if matched == len(stop.text)
            ]
            if complete:
                self._held = ""
                end = index + 1
                return Passed(
                    window[: end if self._include_stop else end - max(complete)], is_stopped=True
                )
        passed = len(window) - max(self._matched)
        self._held = window[passed:]
        return Passed(window[:passed], is_stopped=False)

    def finish(self) -> str:
        """Return what is held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held
