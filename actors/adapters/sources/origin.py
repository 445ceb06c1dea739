"""What a download asks of the place that it is from, and which files it takes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from weft.actors.adapters import defaults
from weft.actors.adapters.errors import BadAdapter, Unavailable
from weft.actors.adapters.peft_config import CONFIG_BYTES_MAX
from weft.actors.adapters.reading import CONFIG_NAME, PICKLE_NAME, WEIGHTS_NAME
from weft.runtime.sources import Remote

_HASH_CHUNK_BYTES = 1024 * 1024


class File(NamedTuple):
    """A file that is there."""

    name: str
    size_bytes: int | None  # None: not told
    sha256: str | None = None  # of its content, hex; None: not told
    blob: str | None = None  # git's name of its content, hex; None: not told


class Found(NamedTuple):
    """A folder at one version, and the files to take of it."""

    source: Remote  # exact
    files: tuple[File, ...]


class Origin(Protocol):
    """A kind of place. Both raise ``BadAdapter``, or ``Unavailable`` for what may pass."""

    def find(self, source: Remote) -> Found:
        """Look up which version a source is at now, and what is there."""
        ...

    def get(self, found: Found, file: File, folder: Path) -> None:
        """Put a file into a folder of this machine, under its name."""
        ...


def limits(weights_bytes_max: int) -> dict[str, int]:
    """Return the files that are taken, and how many bytes each may have."""
    return {CONFIG_NAME: CONFIG_BYTES_MAX, WEIGHTS_NAME: weights_bytes_max, **defaults.FILES}


def needed(
    source: Remote, there: Mapping[str, File], limits: Mapping[str, int]
) -> tuple[File, ...]:
    """Return which of the files that are there are taken. Raises ``BadAdapter``.

    ``there`` need not tell of others than ``limits`` and the pickled weights.
    """
    if CONFIG_NAME not in there:
        raise BadAdapter(f"{CONFIG_NAME}: there is none in {source}; is it an adapter's folder?")
    if WEIGHTS_NAME not in there:
        if PICKLE_NAME in there:
            raise BadAdapter(
                f"{PICKLE_NAME}: pickled weights can run code and are never read; convert those of "
                f"{source} to {WEIGHTS_NAME}, as PEFT's save_pretrained does"
            )
        raise BadAdapter(f"{WEIGHTS_NAME}: there is none in {source}; is it an adapter's folder?")
    for name, bytes_max in limits.items():
        if name in there and (there[name].size_bytes or 0) > bytes_max:
            raise _too_large(source, name, there[name].size_bytes, bytes_max)
    return tuple(there[name] for name in limits if name in there)


def check(found: Found, file: File, path: Path, *, bytes_max: int) -> None:
    """Raise ``BadAdapter`` if too much came, ``Unavailable`` if it is not what was told."""
    size_bytes = path.stat().st_size
    if size_bytes > bytes_max:
        raise _too_large(found.source, file.name, size_bytes, bytes_max)
    hashes = {"sha256": (hashlib.sha256(), file.sha256), "git blob": (hashlib.sha1(), file.blob)}
    hashes["git blob"][0].update(f"blob {size_bytes}\0".encode())
    with path.open("rb") as content:
        while chunk := content.read(_HASH_CHUNK_BYTES):
            for digest, expected in hashes.values():
                if expected is not None:
                    digest.update(chunk)
    problems = [
        f"{kind} {digest.hexdigest()} instead of {expected}"
        for kind, (digest, expected) in hashes.items()
        if expected is not None and digest.hexdigest() != expected
    ]
    if file.size_bytes not in (None, size_bytes):
        problems.insert(0, f"{size_bytes} bytes instead of {file.size_bytes}")
    if problems:
        raise Unavailable(
            f"{file.name} of {found.source} did not come as it is there: {problems[0]}; try again"
        )


def _too_large(source: Remote, name: str, size_bytes: int | None, bytes_max: int) -> BadAdapter:
    return BadAdapter(
        f"{name}: {size_bytes} bytes in {source}, more than any adapter for this base and "
        f"max_lora_rank needs ({bytes_max}); is it the right one?"
    )
