"""Adapters at URLs, by fsspec: s3://, gs:// and whatever else is installed.

Credentials and endpoints are the file systems' own business: their environment variables and
files, and fsspec's configuration (https://filesystem-spec.readthedocs.io, "Configuration").
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from weft.actors.adapters.errors import BadAdapter, Unavailable
from weft.actors.adapters.reading import PICKLE_NAME
from weft.actors.adapters.sources.origin import File, Found, needed
from weft.runtime.sources import Remote

# Packages of weft that bring a file system.
_EXTRAS = {"s3": "s3", "s3a": "s3"}

# What file systems call that which changes with a file's content.
_MARKS = {
    "checksum", "content_md5", "crc32c", "etag", "generation", "last_modified", "lastmodified",
    "md5hash", "mtime", "size", "updated", "versionid",
}  # fmt: skip
_MARK_DIGITS = 16


class Urls:
    """Folders of any file system that fsspec has."""

    def __init__(self, limits: Mapping[str, int]) -> None:
        """``limits`` are the bytes that each file may have."""
        self._limits = limits

    def find(self, source: Remote) -> Found:
        """Ask for each file that may be there; their marks together are the version."""
        fs, path = _opened(source)
        infos: dict[str, dict[str, Any]] = {}
        for name in (*self._limits, PICKLE_NAME):
            with _explained(source):
                try:
                    infos[name] = fs.info(f"{path}/{name}")
                except FileNotFoundError:
                    continue
        there = {name: File(name, _size(info)) for name, info in infos.items()}
        files = needed(source, there, self._limits)
        marks = [(file.name, *_marks(infos[file.name])) for file in files]
        version = hashlib.sha256(repr(marks).encode()).hexdigest()[:_MARK_DIGITS]
        if source.revision not in (None, version):
            raise BadAdapter(
                f"{source.scheme}://{source.path} has changed since it was loaded; load it again "
                f"to take it over"
            )
        return Found(source.at(version), files)

    def get(self, found: Found, file: File, folder: Path) -> None:
        """Download a file."""
        fs, path = _opened(found.source)
        with _explained(found.source):
            try:
                fs.get_file(f"{path}/{file.name}", str(folder / file.name))
            except FileNotFoundError:
                raise Unavailable(f"{file.name} has gone from {found.source}; try again") from None


def _opened(source: Remote) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a URL, and the folder's path in it."""
    url = f"{source.scheme}://{source.path}"
    try:
        with _explained(source):
            fs, path = url_to_fs(url)
            return fs, str(path).rstrip("/")
    except ImportError as error:
        extra = _EXTRAS.get(source.scheme)
        what = f"pip install 'weft[{extra}]'" if extra else str(error)
        raise BadAdapter(
            f"{source.scheme}:// needs a package that is not installed: {what}"
        ) from None


def _size(info: Mapping[str, Any]) -> int | None:
    size = info.get("size")
    return size if isinstance(size, int) else None


def _marks(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    return sorted((key, str(value)) for key, value in info.items() if key.lower() in _MARKS)


@contextmanager
def _explained(source: Remote) -> Iterator[None]:
    """Say what went wrong. Each file system has errors of its own, of no common kind."""
    try:
        yield
    except (BadAdapter, FileNotFoundError, ImportError):
        raise
    except PermissionError as error:
        raise BadAdapter(
            f"{source} may not be read: {error}; give weft's environment credentials that may"
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise Unavailable(f"{source} cannot be read: {error}; try again later") from None
    except ValueError as error:
        raise BadAdapter(f"{source} cannot be read: {error}; check the URL") from None
    except Exception as error:  # noqa: BLE001 (the libraries of S3, GCS and others have no base)
        kind = type(error).__name__
        raise Unavailable(f"{source} cannot be read: {kind}: {error}; try again later") from None
