"""The text side of adapters: the base's, but for what their folders say."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict

from weft.actors.tokenizer.guarded import GuardedTokenizer
from weft.actors.tokenizer.prompt import PromptEncoder
from weft.actors.tokenizer.refusal import Refusal
from weft.actors.tokenizer.text_model import TextModel
from weft.runtime.messages import AdapterDefaults, AdapterEntry, AddedToken

# Adapters of one make share one. They share the base's vocabulary anyway; one with 250 control
# tokens takes a megabyte and some milliseconds.
TOKENIZERS_MAX = 64

_Key = tuple[str | None, tuple[AddedToken, ...]]


class AdapterTexts:
    """Returns how a request for the base, or for an adapter, is encoded."""

    def __init__(self, base: TextModel) -> None:
        self._base = base
        self._tokenizers: OrderedDict[_Key, GuardedTokenizer] = OrderedDict()  # the oldest first
        self.base = PromptEncoder(base, GuardedTokenizer(base.backend, base.template))

    def of(self, entry: AdapterEntry | None) -> PromptEncoder:
        """Return the base's for None, or an adapter's. Raises ``Refusal`` if there is none."""
        if entry is None or (entry.defaults is None and not entry.tokens_added):
            return self.base
        model = adapter_text(self._base, entry)
        key = (model.template, model.added_tokens)
        tokenizer = self._tokenizers.pop(key, None)
        if tokenizer is None:
            try:
                tokenizer = GuardedTokenizer(model.backend, *key)
            except ValueError as error:
                raise Refusal(
                    "adapter_refused",
                    f"the adapter {entry.name!r} cannot be used: {error}; save its tokenizer again",
                    "model",
                ) from None
        self._tokenizers[key] = tokenizer
        if len(self._tokenizers) > TOKENIZERS_MAX:
            self._tokenizers.popitem(last=False)
        return PromptEncoder(model, tokenizer)


def adapter_text(base: TextModel, entry: AdapterEntry) -> TextModel:
    """Return the text side of an adapter of the base."""
    own = entry.defaults or AdapterDefaults()
    special = base.special_tokens | own.special_tokens
    # The base's template is trusted, and rendered at once.
    is_own = own.chat_template is not None and (
        own.chat_template != base.template or special != base.special_tokens
    )
    # Its own tokens, in text or as ids, are nobody else's.
    vocab_size = base.vocab_size + entry.tokens_added
    ends: set[int | None] = {*base.eos_token_ids}
    if own.eos_token_ids is not None:
        ends = {*own.eos_token_ids}
    if "eos_token" in special:
        ids = {token.content: token.id for token in own.added_tokens}
        end = special["eos_token"]
        ends.add(ids[end] if end in ids else base.backend.token_to_id(end))
    return dataclasses.replace(
        base,
        template=own.chat_template if is_own else base.template,
        render=None if is_own else base.render,
        special_tokens=special,
        eos_token_ids=tuple(sorted(e for e in ends if e is not None and 0 <= e < vocab_size)),
        defaults=base.defaults.overridden(own.sampling),
        vocab_size=vocab_size,
        system_prompt=own.system_prompt,
        stop=tuple(own.stop),
        added_tokens=tuple(own.added_tokens),
    )
