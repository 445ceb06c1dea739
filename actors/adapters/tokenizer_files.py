"""A folder's tokenizer: its ordinary vocabulary, and the tokens that were added to it.

transformers' save_pretrained writes all of it into tokenizer.json, and special tokens' names into
tokenizer_config.json; older versions list added tokens there too, or in added_tokens.json.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import msgspec

from weft.actors.adapters import strict_json
from weft.actors.adapters.errors import BadAdapter, shown, shown_name
from weft.runtime.messages import AddedToken

TOKENIZER_NAME = "tokenizer.json"
CONFIG_NAME = "tokenizer_config.json"
ADDED_NAME = "added_tokens.json"
NAMES = (TOKENIZER_NAME, CONFIG_NAME, ADDED_NAME)

# The largest vocabularies, of 256 thousand tokens with their merges, take 35 MB.
TOKENIZER_BYTES_MAX = 64 * 1024 * 1024
CONFIG_BYTES_MAX = 4 * 1024 * 1024

# What may stand in a chat template as a variable.
SPECIAL_NAMES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
CONTENT_CHARACTERS_MAX = 256

_FLAGS = AddedToken.__struct_fields__[2:]

# Returns a file's content, None if there is none. May raise ``FileError`` or ``BadAdapter``.
Read = Callable[[str], bytes | None]


class Vocabulary:
    """The ordinary vocabulary of a tokenizer.json."""

    def __init__(self, values: dict[str, Any]) -> None:
        """``values`` is the file's object. Raises ``BadAdapter``."""
        model = _expect(values.get("model"), dict[str, Any], TOKENIZER_NAME, "model")
        vocabulary = model.get("vocab")
        if isinstance(vocabulary, list):  # Unigram: pieces with their scores, in order
            pairs = _expect(vocabulary, list[tuple[str, float]], TOKENIZER_NAME, "model.vocab")
            self.ids = {piece: index for index, (piece, _) in enumerate(pairs)}
        else:
            self.ids = _expect(vocabulary, dict[str, int], TOKENIZER_NAME, "model.vocab")
        merges: list[str | list[str]] | None = _expect(
            model.get("merges"), list[str | list[str]] | None, TOKENIZER_NAME, "model.merges"
        )
        # Versions write a pair in two ways, and leave out what is not set.
        joined = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges or ()]
        rest = {key: value for key, value in model.items() if value and key != "merges"}
        rest["vocab"] = sorted(vocabulary.items()) if isinstance(vocabulary, dict) else vocabulary
        self.digest = hashlib.sha256(msgspec.json.encode([joined, sorted(rest.items())])).digest()

    @cached_property
    def contents(self) -> dict[int, str]:
        """Id to token."""
        return {id_: content for content, id_ in self.ids.items()}


class TokenizerFiles:
    """What a folder says, read as it is needed. Raises ``BadAdapter`` and ``FileError``."""

    def __init__(self, read: Read) -> None:
        self._read = read

    @cached_property
    def raw(self) -> bytes | None:
        """The content of tokenizer.json."""
        return self._read(TOKENIZER_NAME)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of tokenizer_config.json."""
        return self._json(CONFIG_NAME)

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """eos_token and its like, as far as they are named."""
        found = {}
        for name in SPECIAL_NAMES:
            token = self.config.get(name)
            content = token.get("content") if isinstance(token, dict) else token
            if content is not None:
                content = _expect(content, str, CONFIG_NAME, name)
                _check_content(content, f"{CONFIG_NAME}: {name}")
                found[name] = content
        return found

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The ordinary vocabulary; None without a tokenizer.json."""
        return None if self.raw is None else Vocabulary(self._tokenizer)

    @cached_property
    def added(self) -> dict[int, AddedToken]:
        """The tokens that were added, by id."""
        found: dict[int, AddedToken] = {}
        for source, tokens in (
            (ADDED_NAME, self._added_by_name()),
            (CONFIG_NAME, self._added_in_config()),
            (TOKENIZER_NAME, self._added_in_tokenizer()),
        ):
            for token in tokens:
                _check_content(token.content, f"{source}: added token {token.id}")
                before = found.get(token.id, token)
                if before.content != token.content:
                    raise BadAdapter(
                        f"{source}: added token {token.id} is {shown(token.content)}, and "
                        f"{shown(before.content)} in another file; save the tokenizer again"
                    )
                found[token.id] = token
        contents = {token.content for token in found.values()}
        if len(contents) != len(found):
            raise BadAdapter(f"{TOKENIZER_NAME}: an added token has two ids; save it again")
        return found

    @cached_property
    def named_only(self) -> set[int]:
        """Ids of added tokens of which nothing but the name is known for certain."""
        named = {token.id for token in self._added_by_name()}
        return named - {t.id for t in (*self._added_in_config(), *self._added_in_tokenizer())}

    @cached_property
    def _tokenizer(self) -> dict[str, Any]:
        try:
            return msgspec.json.decode(self.raw or b"{}", type=dict[str, Any])
        except (ValueError, RecursionError) as error:
            raise BadAdapter(f"{TOKENIZER_NAME}: {error}; save the tokenizer again") from None

    def _added_in_tokenizer(self) -> list[AddedToken]:
        tokens = _expect(
            self._tokenizer.get("added_tokens") or [],
            list[dict[str, Any]],
            TOKENIZER_NAME,
            "added_tokens",
        )
        return [
            _token(token, TOKENIZER_NAME, f"added_tokens[{index}]")
            for index, token in enumerate(tokens)
        ]

    def _added_in_config(self) -> list[AddedToken]:
        field = "added_tokens_decoder"
        tokens = _expect(
            self.config.get(field) or {}, dict[str, dict[str, Any]], CONFIG_NAME, field
        )
        return [
            _token(token | {"id": _id(id_)}, CONFIG_NAME, f"{field}.{shown_name(id_)}")
            for id_, token in tokens.items()
        ]

    def _added_by_name(self) -> list[AddedToken]:
        ids = _expect(self._json(ADDED_NAME), dict[str, int], ADDED_NAME, "it")
        lists = [self.config.get(f"{kind}_special_tokens") for kind in ("additional", "extra")]
        special = {*self.special_tokens.values()}
        special |= {str(token) for tokens in lists if isinstance(tokens, list) for token in tokens}
        return [
            AddedToken(id_, content, special=content in special, normalized=content not in special)
            for content, id_ in ids.items()
        ]

    def _json(self, name: str) -> dict[str, Any]:
        raw = self._read(name)
        return {} if raw is None else load_object(name, raw)


def load_object(name: str, raw: bytes) -> dict[str, Any]:
    """Return the JSON object of a file. Raises ``BadAdapter``."""
    try:
        values = strict_json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadAdapter(f"{name}: it is no JSON ({error}); save it again") from None
    found: dict[str, Any] = _expect(values, dict[str, Any], name, "it")
    return found


def _token(values: dict[str, Any], file: str, where: str) -> AddedToken:
    flags = [_expect(values.get(name, False), bool, file, f"{where}.{name}") for name in _FLAGS]
    id_ = _expect(values.get("id"), int, file, f"{where}.id")
    return AddedToken(id_, _expect(values.get("content"), str, file, f"{where}.content"), *flags)


def _id(text: str) -> int:
    # "_1" and the digits of other scripts are integers to Python.
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1


def _check_content(content: str, where: str) -> None:
    if not 0 < len(content) <= CONTENT_CHARACTERS_MAX:
        raise BadAdapter(
            f"{where}: {len(content)} characters; a token has 1 to {CONTENT_CHARACTERS_MAX}"
        )


def _expect(value: object, kind: Any, file: str, field: str) -> Any:
    """Return a value, of a type. Raises ``BadAdapter`` if it is of another one."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise BadAdapter(f"{file}: {field}: {error}; save the tokenizer again") from None
