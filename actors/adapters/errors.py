"""What is wrong with an adapter, and how it is put into words that can be logged and sent."""

from __future__ import annotations

# Of a value from a file; a tensor's name has about 70. What to do comes after it and is not cut.
_SHOWN_CHARACTERS_MAX = 120


class BadAdapter(Exception):
    """An adapter that cannot be used. The message names the field or tensor and what to do."""


class Unavailable(BadAdapter):
    """An adapter that cannot be had now, and perhaps later: the fault lies on the way to it."""


class GivenUp(BadAdapter):
    """An adapter that was unloaded before it had come."""

    def __init__(self) -> None:
        super().__init__("it was unloaded before it had been read; load it again if it is wanted")


def need(ok: bool, field: str, message: str) -> None:
    """Raise ``BadAdapter`` unless ``ok``; ``message`` says what to do about the field."""
    if not ok:
        raise BadAdapter(f"{shown_name(field)}: {message}")


def shown(value: object) -> str:
    """Return a value of a file as a message quotes it: short, and printable as repr makes it."""
    return _cut(repr(value))


def shown_name(name: str) -> str:
    """Return a field's or tensor's name as ``shown`` does, but without quotation marks."""
    return _cut(repr(name)[1:-1])


def _cut(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS_MAX:
        return text
    return f"{text[: _SHOWN_CHARACTERS_MAX - 3]}..."
