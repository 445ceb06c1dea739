"""The base's vocabulary, and those of adapters that add tokens to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from weft.actors.added_tokens import extended
from weft.actors.detokenizer.vocabulary import Vocabulary
from weft.runtime.messages import AddedToken

# Adapters of one make share one. Each remembers the bytes of tokens that it has seen.
VOCABULARIES_MAX = 64


class Vocabularies:
    """Returns what a request's tokens stand for."""

    def __init__(self, base: Vocabulary) -> None:
        self._base = base
        self._extended: OrderedDict[tuple[AddedToken, ...], Vocabulary] = OrderedDict()

    def of(self, added_tokens: Sequence[AddedToken]) -> Vocabulary:
        """Return the base's, with these tokens, which the tokenizer has taken already."""
        if not added_tokens:
            return self._base
        key = tuple(added_tokens)
        vocabulary = self._extended.pop(key, None)
        if vocabulary is None:
            vocabulary = Vocabulary(extended(self._base.backend, key))
        self._extended[key] = vocabulary
        if len(self._extended) > VOCABULARIES_MAX:
            self._extended.popitem(last=False)
        return vocabulary
