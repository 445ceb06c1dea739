"""The names of a run's processes on its sockets, which no other program can bear.

Every process of a run knows its key; a process's identity proves it. So a program that calls itself
by the name of a process, by mistake or as a test, is a stranger, and cannot take its place.
"""

from __future__ import annotations

import hashlib
import secrets

KEY_BYTES = 16
PROOF_BYTES = 12


def fresh_key() -> bytes:
    """Return a key for a new run."""
    return secrets.token_bytes(KEY_BYTES)


def process_identity(role: str, epoch: int, key: bytes) -> str:
    """Return the socket identity of one life of a role; no two lives in a run share one."""
    life = f"{role}.{epoch}"
    proof = hashlib.blake2b(life.encode(), key=key, digest_size=PROOF_BYTES)
    return f"{life}.{proof.hexdigest()}"
