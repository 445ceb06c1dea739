"""The base model's tokenizer, as far as adapters' tokenizers are held against it."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import msgspec

from weft.actors.adapters.errors import BadAdapter, shown
from weft.actors.adapters.tokenizer_files import (
    CONFIG_NAME,
    TOKENIZER_NAME,
    TokenizerFiles,
    Vocabulary,
    load_object,
)
from weft.runtime.messages import AddedToken

# They travel with every request of the adapter.
ADDED_TOKENS_MAX = 1024

# Adapters of one make have the same file, which takes a tenth of a second to read.
_ALIKE_MAX = 4

_REMOVE = "or remove the tokenizer's files, if the adapter was trained with the base's"


class BaseText:
    """Reads what it needs when it first needs it: most adapters have no tokenizer.

    The base's folder is the operator's, and is trusted.
    """

    def __init__(self, model: str) -> None:
        """``model`` is the base's folder."""
        self._folder = Path(model)
        self._files = TokenizerFiles(self._read)
        self._alike: dict[bytes, bool] = {}  # digest of a tokenizer.json -> vocabulary is ours

    @property
    def special_tokens(self) -> dict[str, str]:
        """eos_token and its like."""
        return self._files.special_tokens

    @cached_property
    def rows(self) -> int:
        """Rows of the embedding: every token id is below."""
        config = load_object("config.json", self._read("config.json") or b"{}")
        size = config.get("text_config", config).get("vocab_size")
        return size if isinstance(size, int) else self._next_id

    def has(self, content: str) -> bool:
        """Whether it is one of the base's tokens."""
        return self._id_of(content) is not None

    def added_tokens(self, files: TokenizerFiles, rows: int) -> list[AddedToken]:
        """Return an adapter's tokens that the base has not, or has otherwise, by id.

        ``rows`` is how many tokens the adapter's embedding has. Raises ``BadAdapter`` if ids mean
        other tokens than in the base.
        """
        if files.raw is not None and files.raw != self._files.raw:
            self._check_vocabulary(files)
        tokens = self._differing(files)
        if len(tokens) > ADDED_TOKENS_MAX:
            raise BadAdapter(
                f"{TOKENIZER_NAME}: {len(tokens)} added tokens; at most {ADDED_TOKENS_MAX} are "
                f"taken"
            )
        padding = files.special_tokens.get("pad_token")
        new = [token for token in tokens if self._is_new(token)]
        for expected, token in enumerate(new, self._next_id):
            if token.id != expected:
                raise BadAdapter(
                    f"{TOKENIZER_NAME}: added token {shown(token.content)} has the id {token.id}, "
                    f"and {expected} is the next after the base's; save the tokenizer again, "
                    f"{_REMOVE}"
                )
            # One that only ever fills up batches needs no row, and is often added without any.
            if token.id >= rows and token.content != padding:
                raise BadAdapter(
                    f"{TOKENIZER_NAME}: added token {token.id}, {shown(token.content)}, has no "
                    f"embedding: there are {rows}; save the adapter with its embedding "
                    f"(modules_to_save), {_REMOVE}"
                )
        return [token for token in tokens if token.id < rows]

    def _differing(self, files: TokenizerFiles) -> list[AddedToken]:
        """Return what the base has not among its added tokens, or has with other flags, by id."""
        own, theirs = self._files.added, dict(files.added)
        for id_ in files.named_only:
            if id_ in own and own[id_].content == theirs[id_].content:
                theirs[id_] = own[id_]
        # transformers takes every token with a role of its own for special.
        ids = {token.content: id_ for id_, token in (own | theirs).items()}
        for name, content in files.special_tokens.items():
            found = ids.get(content, self._id_of(content))
            if found is not None and self.special_tokens.get(name) != content:
                token = theirs.get(found) or own.get(found) or AddedToken(found, content)
                theirs[found] = msgspec.structs.replace(token, special=True)
        return [token for id_, token in sorted(theirs.items()) if own.get(id_) != token]

    @cached_property
    def _ordinary(self) -> Vocabulary | None:
        return self._files.vocabulary

    @cached_property
    def _next_id(self) -> int:
        """The id that the next added token gets, as Hugging Face's tokenizers count."""
        ordinary = len(self._ordinary.ids) if self._ordinary else 0
        return max(ordinary, max(self._files.added, default=-1) + 1)

    def _check_vocabulary(self, files: TokenizerFiles) -> None:
        assert files.raw is not None
        if self._ordinary is None:
            raise BadAdapter(
                f"{TOKENIZER_NAME}: the base has none that it could be compared with; remove it"
            )
        digest = hashlib.sha256(files.raw).digest()
        if digest in self._alike:
            return
        theirs = files.vocabulary
        assert theirs is not None
        if theirs.digest != self._ordinary.digest:
            raise BadAdapter(
                f"{TOKENIZER_NAME}: model: its ordinary vocabulary is not the base's; was the "
                f"adapter trained for another base? If not, save the tokenizer again, {_REMOVE}"
            )
        # How text is cut before, its normalizer and pre_tokenizer, is not compared: transformers
        # itself saves other ones than it has read, by its version and the base's model_type.
        if len(self._alike) == _ALIKE_MAX:
            self._alike.clear()
        self._alike[digest] = True

    def _is_new(self, token: AddedToken) -> bool:
        """Whether the base has no such token. Raises ``BadAdapter`` if it has half of it."""
        id_, content = self._id_of(token.content), self._content_of(token.id)
        if id_ not in (None, token.id) or content not in (None, token.content):
            what = f"it has the id {id_}" if content is None else f"{token.id} is {shown(content)}"
            raise BadAdapter(
                f"{TOKENIZER_NAME}: added token {token.id} is {shown(token.content)}, and in the "
                f"base {what}; save the tokenizer again, {_REMOVE}"
            )
        return id_ is None

    @cached_property
    def _added_ids(self) -> dict[str, int]:
        return {token.content: id_ for id_, token in self._files.added.items()}

    def _id_of(self, content: str) -> int | None:
        ordinary = self._ordinary.ids if self._ordinary else {}
        return self._added_ids.get(content, ordinary.get(content))

    def _content_of(self, id_: int) -> str | None:
        token = self._files.added.get(id_)
        ordinary = self._ordinary.contents if self._ordinary else {}
        return token.content if token else ordinary.get(id_)

    def _read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BadAdapter(
                f"the base's {name} cannot be read, to compare {CONFIG_NAME} with it: "
                f"{error.strerror}; mend the base's folder"
            ) from None
