"""Tokens as text and bytes, and how a tokenizer joins them: streams that equal a full decode.

transformers decodes a whole list of ids. A stream must come to the same text one token at a time,
whatever the ids, and never take back a character. So each stream repeats what the tokenizer's
decoder does to one token after another, and holds back what a later token could still change.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from tokenizers import Tokenizer

from weft.runtime.config import ConfigError

# Byte tokens of one run that wait for its end: a later byte can make the whole run invalid. Text in
# a script that a vocabulary spells in bytes would not flow at all without a limit; beyond it whole
# characters leave, and only an invalid byte after so many valid ones is decoded otherwise.
BYTE_RUN_MAX = 64

REPLACEMENT = "\ufffd"

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TextStream(Protocol):
    """One sequence's text, token by token."""

    def feed(self, token: int) -> str:
        """Return the characters that this token has made certain."""
        ...

    def finish(self) -> str:
        """Return what was held back, decoded as it is."""
        ...


class _Joining(NamedTuple):
    """A decoder of pieces, reduced to what it does."""

    replaced: tuple[tuple[str, str], ...]
    replaced_first: tuple[tuple[str, str], ...]  # in the first token of a text
    has_byte_tokens: bool
    strip: str  # a character dropped from the start of the text
    strip_max: int  # so many times


class Vocabulary:
    """A tokenizer's tokens, read on demand. Ids beyond the tokenizer's have no text."""

    def __init__(self, backend: Tokenizer) -> None:
        """Raises ``ConfigError`` if the tokenizer's decoder cannot be streamed."""
        self.backend = backend
        added = backend.get_added_tokens_decoder()
        special = {token.content for token in added.values() if token.special}
        self._special = frozenset(id_ for id_, token in added.items() if token.content in special)
        self._bytes: dict[int, bytes] = {}  # at most one entry for each token
        self._joining = _joining(backend)

    def is_special(self, token: int) -> bool:
        """Whether ``skip_special_tokens`` leaves the token out."""
        return token in self._special

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes that the token stands for, alone and inside a text."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._read(token)
        return known

    def stream(self, *, skip_special_tokens: bool) -> TextStream:
        """Return the stream of one sequence."""

        def is_skipped(token: int) -> bool:
            return skip_special_tokens and token in self._special

        if self._joining is None:
            return _ByteLevelStream(self.bytes_of, is_skipped)
        return _PieceStream(self.backend, self._joining, is_skipped)

    def _read(self, token: int) -> bytes:
        piece = _piece(self.backend, token) or ""
        if self._joining is None:
            return _byte_level_bytes(piece)
        if self._joining.has_byte_tokens and (byte := _BYTE_TOKEN.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        for old, new in self._joining.replaced:
            piece = piece.replace(old, new)
        return piece.encode()


class _ByteLevelStream:
    """Tokens are bytes, and the text is their UTF-8 (GPT-2, Llama 3, Qwen)."""

    def __init__(self, bytes_of: Callable[[int], bytes], is_skipped: Callable[[int], bool]) -> None:
        self._bytes_of = bytes_of
        self._is_skipped = is_skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        if self._is_skipped(token):
            return ""
        return self._decoder.decode(self._bytes_of(token))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _PieceStream:
    """Tokens are text; some stand for single bytes (SentencePiece: Llama 2, Mistral, Gemma).

    A run of byte tokens is UTF-8 as a whole, or one replacement character for each.
    """

    def __init__(
        self, backend: Tokenizer, joining: _Joining, is_skipped: Callable[[int], bool]
    ) -> None:
        self._backend = backend
        self._joining = joining
        self._is_skipped = is_skipped
        self._is_first = True
        self._strip_left = joining.strip_max
        self._run = bytearray()
        self._is_run_invalid = False

    def feed(self, token: int) -> str:
        if self._is_skipped(token):
            return ""
        piece = _piece(self._backend, token)
        if piece is None:
            return ""
        if self._joining.has_byte_tokens and (byte := _BYTE_TOKEN.fullmatch(piece)):
            self._is_first = False
            return self._strip(self._feed_byte(int(byte[1], 16)))
        replaced = self._joining.replaced_first if self._is_first else self._joining.replaced
        for old, new in replaced:
            piece = piece.replace(old, new)
        self._is_first = False
        return self._strip(self._end_run() + piece)

    def finish(self) -> str:
        return self._strip(self._end_run())

    def _feed_byte(self, byte: int) -> str:
        if self._is_run_invalid:
            return REPLACEMENT
        self._run.append(byte)
        try:
            text, used = codecs.utf_8_decode(bytes(self._run), "strict", False)
        except UnicodeDecodeError:
            self._is_run_invalid = True
            return self._take_invalid_run()
        if len(self._run) < BYTE_RUN_MAX:
            return ""
        del self._run[:used]
        return text

    def _end_run(self) -> str:
        self._is_run_invalid = False
        try:
            text = self._run.decode()
        except UnicodeDecodeError:
            return self._take_invalid_run()
        self._run.clear()
        return text

    def _take_invalid_run(self) -> str:
        text = REPLACEMENT * len(self._run)
        self._run.clear()
        return text

    def _strip(self, text: str) -> str:
        while text and self._strip_left:
            if text[0] != self._joining.strip:
                self._strip_left = 0
            else:
                text = text[1:]
                self._strip_left -= 1
        return text


def _piece(backend: Tokenizer, token: int) -> str | None:
    piece: str | None = backend.id_to_token(token)
    return piece


def _joining(backend: Tokenizer) -> _Joining | None:
    """Return how pieces are joined; None for a byte-level decoder."""
    if backend.decoder is None:
        raise ConfigError("model: tokenizer.json has no decoder; save it with the one it needs")
    steps = _steps(json.loads(backend.decoder.__getstate__()))
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return None
    replaced: list[tuple[str, str]] = []
    replaced_first: list[tuple[str, str]] = []
    has_byte_tokens = is_fused = False
    strip, strip_max = "", 0
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": old}, "content": new} if not is_fused:
                replaced.append((old, new))
                replaced_first.append((old, new))
            case {"type": "Metaspace", "replacement": old} if not is_fused:
                replaced.append((old, " "))
                first = " " if step.get("prepend_scheme") == "never" else ""
                replaced_first.append((old, first))
            case {"type": "ByteFallback"} if not (is_fused or has_byte_tokens):
                has_byte_tokens = True
            case {"type": "Fuse"}:
                is_fused = True
            case {"type": "Strip", "content": strip, "start": strip_max, "stop": 0} if (
                is_fused and step is steps[-1]
            ):
                pass
            case _:
                raise ConfigError(
                    f"model: the decoder in tokenizer.json is {' + '.join(kinds)}, and its step "
                    f"{step} is none that weft can stream; it knows ByteLevel, and Replace, "
                    f"Metaspace, ByteFallback, Fuse and a last Strip"
                )
    return _Joining(tuple(replaced), tuple(replaced_first), has_byte_tokens, strip, strip_max)


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for inner in decoder["decoders"] for step in _steps(inner)]


def _byte_level_bytes(piece: str) -> bytes:
    # A token with a character that stands for no byte was added as text.
    values = [_BYTE_OF_CHARACTER.get(character) for character in piece]
    found = [value for value in values if value is not None]
    return bytes(found) if len(found) == len(values) else piece.encode()


def _byte_of_character() -> dict[str, int]:
    """Return the table of GPT-2: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [value for value in range(256) if value not in printable]
    table = {chr(value): value for value in printable}
    return table | {chr(0x100 + index): value for index, value in enumerate(rest)}


_BYTE_OF_CHARACTER = _byte_of_character()
