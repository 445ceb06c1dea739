"""A tokenizer in which the text of a message cannot be, or become, a control token.

Whoever writes ``<|im_end|>`` into a message must not end the turn. Encoding the rendered text
cannot tell that token from the template's own, so every string of a chat is guarded before it is
rendered: a control token in it is split by a marker that the tokenizer's normalizer drops, but only
after the added tokens were looked for. What is left is the text, encoded as ordinary text.
A chat without anything like a control token is encoded exactly as transformers does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from weft.actors.added_tokens import extended
from weft.runtime import messages
from weft.runtime.messages import ChatMessage

# Noncharacters, which Unicode reserves for use inside a program. The first one vanishes before
# normalization; the second one after it, for added tokens that are looked for in normalized text.
RAW_MARKER = "\ufdd0"
NORMALIZED_MARKER = "\ufdd1"


class GuardedTokenizer:
    """Encodes what templates make of guarded chats, and plain prompts."""

    def __init__(
        self,
        backend: Tokenizer,
        template: str | None,
        added_tokens: Sequence[messages.AddedToken] = (),
    ) -> None:
        """``backend`` stays as it is; ``added_tokens`` are beyond it, or other than in it.

        Raises ``ValueError`` if one of them cannot have its id.
        """
        self._backend = extended(backend, added_tokens)
        added = self._backend.get_added_tokens_decoder().values()
        special = [token for token in added if token.special]
        # Tokens such as <tool_call> are not special, and a model's answer shows them; one that
        # the template writes is still none that a user may forge.
        literal = [token for token in added if token.content in (template or "")]
        self._guard_answers = _guards(special)
        self._guard_others = _guards([*special, *literal])
        _drop_markers(self._backend)

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of a prompt, with the special tokens that the tokenizer adds itself."""
        return self._backend.encode(_without_markers(text)).ids

    def encode_rendered(self, rendered: str) -> list[int]:
        """Return the ids of what a template made of guarded messages."""
        return self._backend.encode(rendered, add_special_tokens=False).ids

    def guarded(self, message: ChatMessage) -> dict[str, str]:
        """Return a message as a template gets it."""
        guards = self._guard_answers if message.role == "assistant" else self._guard_others
        guarded = {"role": message.role}
        for key, text in (("content", message.content), ("name", message.name)):
            if text is not None:
                text = _without_markers(text)
                for guard in guards:
                    text = guard(text)
                guarded[key] = text
        return guarded


class _Guard:
    """Keeps text from being, or becoming part of, one of some tokens."""

    def __init__(self, tokens: list[str], marker: str) -> None:
        # A token of one character has no inside for a marker; no such control token is known.
        self._tokens = sorted({token for token in tokens if len(token) > 1})
        self._marker = marker
        alternatives = "|".join(re.escape(token) for token in self._tokens)
        # Found by looking ahead, so that tokens that overlap are all found.
        self._begins = re.compile(f"(?=(?:{alternatives}))")
        # The template may write the rest of a token around a string that has only a part of it.
        heads = {token[:i] for token in self._tokens for i in range(1, len(token))}
        tails = {token[i:] for token in self._tokens for i in range(1, len(token))}
        self._heads = tuple(head for head in heads if head.strip())
        self._tails = tuple(tail for tail in tails if tail.strip())

    def __call__(self, text: str) -> str:
        parts = []
        done = 0
        for found in self._begins.finditer(text):
            parts.append(text[done : found.start() + 1])
            done = found.start() + 1
        parts.append(text[done:])
        guarded = self._marker.join(parts)
        if text.startswith(self._tails):
            guarded = self._marker + guarded
        if text.endswith(self._heads) or any(text and text in token for token in self._tokens):
            guarded += self._marker
        return guarded


def _guards(tokens: list[AddedToken]) -> list[_Guard]:
    by_marker: dict[str, list[str]] = {}
    for token in tokens:
        marker = NORMALIZED_MARKER if token.normalized else RAW_MARKER
        by_marker.setdefault(marker, []).append(token.content)
    return [_Guard(contents, marker) for marker, contents in by_marker.items()]


def _drop_markers(backend: Tokenizer) -> None:
    drop = normalizers.Replace(RAW_MARKER, "")
    given = backend.normalizer
    backend.normalizer = normalizers.Sequence([drop, given]) if given else drop
    if any(token.normalized for token in backend.get_added_tokens_decoder().values()):
        split = pre_tokenizers.Split(Regex(NORMALIZED_MARKER), "removed")
        before = backend.pre_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, before]) if before else split


def _without_markers(text: str) -> str:
    return text.replace(RAW_MARKER, "\ufffd").replace(NORMALIZED_MARKER, "\ufffd")
