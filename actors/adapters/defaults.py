"""What an adapter's folder says about how to talk to it; every file is optional.

- chat_template.jinja, or chat_template in tokenizer_config.json: as transformers saves them.
- generation_config.json: sampling and ends of an answer, as for a model.
- weft.json: weft's own. ``system_prompt``, ``stop`` and ``sampling``, which wins over the former.
- tokenizer.json, tokenizer_config.json, added_tokens.json: tokens that were added (``BaseText``).
"""

from __future__ import annotations

import difflib
import re
from typing import Any

import msgspec

from weft.actors.adapters.base_text import BaseText
from weft.actors.adapters.errors import BadAdapter, shown, shown_name
from weft.actors.adapters.files import Files
from weft.actors.adapters.tokenizer_files import (
    ADDED_NAME,
    CONFIG_BYTES_MAX,
    CONFIG_NAME,
    NAMES,
    TOKENIZER_BYTES_MAX,
    TOKENIZER_NAME,
    TokenizerFiles,
    load_object,
)
from weft.actors.tokenizer import sampling
from weft.actors.tokenizer.generation_config import GenerationConfig, fields_of, parse
from weft.actors.tokenizer.refusal import Refusal
from weft.runtime.messages import AdapterDefaults, Sampling, SamplingDefaults

TEMPLATE_NAME = "chat_template.jinja"
GENERATION_NAME = "generation_config.json"
OWN_NAME = "weft.json"

# The largest templates of known models have 20,000 characters.
TEMPLATE_BYTES_MAX = 64 * 1024
SYSTEM_PROMPT_CHARACTERS_MAX = 32 * 1024
JSON_BYTES_MAX = 256 * 1024

# All of it together, as a message. Thousands of adapters' lie in the tokenizer's memory.
DEFAULTS_BYTES_MAX = 128 * 1024

# Every file that is looked for, and how large it may be.
FILES = {
    TEMPLATE_NAME: TEMPLATE_BYTES_MAX,
    GENERATION_NAME: JSON_BYTES_MAX,
    OWN_NAME: JSON_BYTES_MAX,
    TOKENIZER_NAME: TOKENIZER_BYTES_MAX,
    CONFIG_NAME: CONFIG_BYTES_MAX,
    ADDED_NAME: CONFIG_BYTES_MAX,
}

EOS_TOKENS_MAX = 64

_NOTHING = AdapterDefaults()


class _Own(msgspec.Struct):
    """The fields of weft.json; null says as little as a field that is not there."""

    system_prompt: str | None = None
    stop: str | list[str] | None = None
    sampling: SamplingDefaults | None = None


def read(
    files: Files, folder: str, base: BaseText, *, rows: int | None = None
) -> AdapterDefaults | None:
    """Return what a folder says, None if nothing. Raises ``BadAdapter`` or ``FileError``.

    ``rows`` is how many tokens the adapter's embedding has, if it is not the base's.
    """
    names = set(files.names(folder))

    def get(name: str) -> bytes | None:
        return files.read(folder, name, bytes_max=FILES[name]) if name in names else None

    tokenizer = TokenizerFiles(get)
    special = {} if names.isdisjoint(NAMES) else _special_tokens(tokenizer, base)
    generation_file = get(GENERATION_NAME)
    generation = _generation(generation_file) if generation_file is not None else None
    own_file = get(OWN_NAME)
    own = _own(own_file) if own_file is not None else _Own()
    given = fields_of(generation.sampling) if generation else {}
    rows = rows or (base.rows if generation or not names.isdisjoint(NAMES) else 0)
    defaults = AdapterDefaults(
        chat_template=_template(get(TEMPLATE_NAME), tokenizer),
        system_prompt=own.system_prompt,
        stop=[own.stop] if isinstance(own.stop, str) else own.stop or [],
        sampling=SamplingDefaults(**given | fields_of(own.sampling or SamplingDefaults())),
        eos_token_ids=_ends(generation.eos_token_ids, rows) if generation else None,
        special_tokens=special,
        added_tokens=[] if names.isdisjoint(NAMES) else base.added_tokens(tokenizer, rows),
    )
    if defaults == _NOTHING:
        return None
    check(defaults)
    return defaults


def check(defaults: AdapterDefaults) -> None:
    """Raise ``BadAdapter`` for what no folder may say, or for too much of it.

    The folder's reader has been told more exactly; this is for whoever does not trust the reader.
    """
    _check_sampling("the folder", defaults.sampling, defaults.stop)
    size = len(msgspec.msgpack.encode(defaults))
    if size > DEFAULTS_BYTES_MAX:
        raise BadAdapter(
            f"the folder's chat template, system prompt, stop strings and added tokens take {size} "
            f"bytes together; at most {DEFAULTS_BYTES_MAX} are taken"
        )


def _special_tokens(tokenizer: TokenizerFiles, base: BaseText) -> dict[str, str]:
    """Return eos_token and its like, where they are not the base's."""
    own = base.special_tokens
    special = {n: token for n, token in tokenizer.special_tokens.items() if own.get(n) != token}
    eos = special.get("eos_token")
    is_known = eos is None or base.has(eos)
    if not is_known and eos not in {token.content for token in tokenizer.added.values()}:
        raise BadAdapter(
            f"{CONFIG_NAME}: eos_token: {shown(eos)} is no token of the base or among the added "
            f"ones; save the tokenizer again"
        )
    return special


def _template(file: bytes | None, tokenizer: TokenizerFiles) -> str | None:
    if file is not None:
        name = TEMPLATE_NAME
        try:
            template = file.decode()
        except UnicodeDecodeError as error:
            raise BadAdapter(f"{name}: it is no UTF-8 ({error.reason}); save it again") from None
    else:
        name = f"{CONFIG_NAME}: chat_template"
        given = tokenizer.config.get("chat_template")
        if given is None:
            return None
        template = _default_template(given)
        if len(template.encode()) > TEMPLATE_BYTES_MAX:
            raise BadAdapter(f"{name}: more than {TEMPLATE_BYTES_MAX} bytes; use a shorter one")
    # Jinja takes 30 ms to import, and most adapters have no template.
    from weft.actors import chat_templates

    try:
        chat_templates.compiled(template)
    except chat_templates.BadTemplate as error:
        raise BadAdapter(f"{name}: {shown_name(str(error))}; mend the template") from None
    return template


def _default_template(given: object) -> str:
    """Return the template of a field that has one, or several with names."""
    match given:
        case str():
            return given
        case [*several]:
            for one in several:
                match one:
                    case {"name": "default", "template": str(template)}:
                        return template
            raise BadAdapter(
                f"{CONFIG_NAME}: chat_template: none of its templates is named default; name one so"
            )
    raise BadAdapter(
        f"{CONFIG_NAME}: chat_template: {shown(given)} is no text, and no list of templates with "
        f"names; save the tokenizer again"
    )


def _generation(file: bytes) -> GenerationConfig:
    values = load_object(GENERATION_NAME, file)
    try:
        generation = parse(values)
    except msgspec.ValidationError as error:
        raise BadAdapter(f"{GENERATION_NAME}: {_reason(error)}; save it again") from None
    _check_sampling(GENERATION_NAME, generation.sampling, [])
    return generation


def _own(file: bytes) -> _Own:
    values = load_object(OWN_NAME, file)
    _refuse_unknown(values, _Own.__struct_fields__, "")
    if isinstance(values.get("sampling"), dict):
        _refuse_unknown(values["sampling"], SamplingDefaults.__struct_fields__, "sampling.")
    try:
        own = msgspec.convert(values, _Own)
    except msgspec.ValidationError as error:
        raise BadAdapter(f"{OWN_NAME}: {_reason(error)}; mend it") from None
    if len(own.system_prompt or "") > SYSTEM_PROMPT_CHARACTERS_MAX:
        raise BadAdapter(
            f"{OWN_NAME}: system_prompt: more than {SYSTEM_PROMPT_CHARACTERS_MAX} characters; use "
            f"a shorter one"
        )
    stop = [own.stop] if isinstance(own.stop, str) else own.stop or []
    _check_sampling(OWN_NAME, SamplingDefaults(), stop)
    _check_sampling(f"{OWN_NAME}: sampling", own.sampling or SamplingDefaults(), [])
    return own


def _refuse_unknown(values: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name[:64], known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise BadAdapter(f"{OWN_NAME}: {where}{shown_name(name)}: no such field; {hint}")


def _check_sampling(file: str, given: SamplingDefaults, stop: list[str]) -> None:
    """Hold defaults to what requests are held to."""
    try:
        sampling.check(Sampling(**fields_of(given), stop=stop))
    except Refusal as refusal:
        raise BadAdapter(f"{file}: {refusal.message}; mend it") from None


def _ends(ids: list[int] | None, rows: int) -> list[int] | None:
    if ids is None:
        return None
    if len(ids) > EOS_TOKENS_MAX:
        raise BadAdapter(
            f"{GENERATION_NAME}: eos_token_id: {len(ids)} tokens; at most {EOS_TOKENS_MAX} are "
            f"taken"
        )
    for id_ in ids:
        if not 0 <= id_ < rows:
            raise BadAdapter(
                f"{GENERATION_NAME}: eos_token_id: {shown(id_)} is no token; ids are 0 .. "
                f"{rows - 1}"
            )
    return sorted(set(ids))


def _reason(error: msgspec.ValidationError) -> str:
    """Return what msgspec says, the field first."""
    text, _, place = str(error).partition(" - at `$.")
    return shown_name(f"{re.sub('`$', '', place)}: {text}" if place else text)
