"""A tokenizer with the tokens that an adapter adds to the base's."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer

from weft.runtime import messages


def extended(backend: Tokenizer, added_tokens: Sequence[messages.AddedToken]) -> Tokenizer:
    """Return a tokenizer like ``backend`` with more tokens; they share one vocabulary.

    Raises ``ValueError`` if a token cannot have its id.
    """
    tokenizer = Tokenizer(backend.model)
    if backend.normalizer is not None:
        tokenizer.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        tokenizer.pre_tokenizer = backend.pre_tokenizer
    if backend.post_processor is not None:
        tokenizer.post_processor = backend.post_processor
    if backend.decoder is not None:
        tokenizer.decoder = backend.decoder
    tokens = dict(backend.get_added_tokens_decoder())
    for own in added_tokens:
        tokens[own.id] = AddedToken(
            own.content, special=own.special, normalized=own.normalized,
            single_word=own.single_word, lstrip=own.lstrip, rstrip=own.rstrip,
        )  # fmt: skip
    # One after the other: a tokenizer gives ids in the order in which tokens come.
    for id_, token in sorted(tokens.items()):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(token.content) != id_:
            raise ValueError(f"added token {id_}, {token.content!r}, cannot have this id")
    return tokenizer
