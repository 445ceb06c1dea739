"""In what graphs of decode steps differ."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Form(IntEnum):
    """What there is room for; each also computes what those before it do."""

    BASE = 0
    PLAIN = 1  # no row has several adapters, nor are there more segments than adapters
    SUMS = 2


class Kind(NamedTuple):
    """One graph."""

    rows: int
    form: Form
