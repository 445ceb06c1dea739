"""Names of modules, matched by an adapter's own regular expressions: as PEFT does, within limits.

Every function may raise ``BadAdapter``; ``field`` is where in the configuration the pattern stands.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import regex

from weft.actors.adapters.errors import BadAdapter, need, shown, shown_name

# Regular expressions come from the adapter's author and must not be able to take for ever: so few
# of them, and so much processor time for a match. A usual one takes 10 to 100 microseconds, of
# which a processor that is shared makes some milliseconds: the time is that of all threads, and a
# virtual machine counts what it had to wait for its host. One match that takes longer is the last;
# what many take together is the sandbox's to bound. One plain name for each module of a hundred
# layers is usual too.
PATTERNS_MAX = 4096
PATTERNS_NOT_NAMES_MAX = 32
_PATTERN_CHARACTERS_MAX = 4096
_MATCH_TIMEOUT_S = 0.1
_NAME = re.compile(r"[\w.\\^$]*")

_Value = TypeVar("_Value", int, float)


def check(field: str, pattern: str) -> None:
    """Refuse what is no regular expression, or a very long one."""
    _check(field, pattern, pattern)


def check_endings(field: str, patterns: Collection[str]) -> None:
    """Refuse patterns of which some are no ends of names, or that are too many."""
    others = sum(_NAME.fullmatch(pattern) is None for pattern in patterns)
    need(
        len(patterns) <= PATTERNS_MAX and others <= PATTERNS_NOT_NAMES_MAX,
        field,
        f"{len(patterns)} entries, {others} of them no plain names; at most {PATTERNS_MAX} and "
        f"{PATTERNS_NOT_NAMES_MAX} are taken; list the modules by name",
    )
    for pattern in patterns:
        _check(field, pattern, _ending(pattern))


def matches(field: str, pattern: str, module: str) -> bool:
    """Whether a pattern is a module's whole name."""
    return _run(field, pattern, _compiled(pattern).fullmatch, module) is not None


def match_start(field: str, pattern: str, module: str) -> Any:
    """Return the match of a pattern with the beginning of a module's name, None if it has none."""
    return _run(field, pattern, _compiled(pattern).match, module)


def look_up(field: str, patterns: Mapping[str, _Value], module: str, default: _Value) -> _Value:
    """Return the value of the first pattern that matches the end of a module's name."""
    for pattern, value in patterns.items():
        if _run(field, pattern, _compiled(_ending(pattern)).fullmatch, module) is not None:
            return value
    return default


def _check(field: str, pattern: str, used: str) -> None:
    """Refuse a pattern that is none, or none any more as it is ``used``."""
    need(
        len(pattern) <= _PATTERN_CHARACTERS_MAX,
        field,
        f"{shown(pattern)} is too long; list the modules by name",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of what another version of Python reads otherwise
            re.compile(pattern)
            re.compile(used)  # as PEFT does
            _compiled(used)
    except (re.error, regex.error, RecursionError, OverflowError, Warning) as error:
        raise BadAdapter(
            f"{field}: {shown(pattern)} is no regular expression: {shown_name(str(error))}; list "
            f"the modules by name"
        ) from None


def _run(field: str, pattern: str, match: Callable[..., Any], module: str) -> Any:
    """Match within the time there is; ``pattern`` is what a message shows."""
    try:
        return match(module, timeout=_MATCH_TIMEOUT_S)
    except TimeoutError:
        raise BadAdapter(
            f"{field}: {shown(pattern)} takes too long to match; list the modules by name"
        ) from None


# Larger than the cache of the package, which more patterns than it holds would always miss.
@lru_cache(maxsize=2 * PATTERNS_MAX)
def _compiled(pattern: str) -> Any:
    return regex.compile(pattern)


def _ending(pattern: str) -> str:
    return rf"(.*\.)?({pattern})"
