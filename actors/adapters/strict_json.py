"""JSON from files that nobody vouches for: nothing is guessed."""

from __future__ import annotations

import json
from typing import Any


def loads(file: bytes) -> Any:
    """Return what a file says. Raises ``ValueError`` or ``RecursionError``, also for doubtful text.

    A name that occurs twice in an object means one thing to one reader and another to the next.
    """
    found = json.loads(file, object_pairs_hook=_unique)
    # Half of a surrogate pair is JSON and no text: a message about it could not be sent.
    json.dumps(found, ensure_ascii=False).encode()
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name occurs twice")
    return values
