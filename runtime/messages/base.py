"""What every message is made of."""

from __future__ import annotations

import msgspec

# Token ids, rows, pages and slots: all below 2**31, because devices index with int32. A sequence's
# number goes to no device: below 2**53, as every client's language has it.
Sequence = int


class Message(
    msgspec.Struct, frozen=True, tag=True, array_like=True, forbid_unknown_fields=True, gc=False
):
    """Base of all messages: immutable, typed, and known by its class name on the wire.

    Subclasses repeat ``frozen=True``: msgspec inherits it, type checkers do not.
    """


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of the values inside messages: an array on the wire, without a name."""
