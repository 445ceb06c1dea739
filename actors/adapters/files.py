"""The adapter store's files: the one place where an actor's work touches a disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Protocol


class FileError(Exception):
    """A file that cannot be read or written; the message says why and what to do."""


class Files(Protocol):
    """What the adapter store does with files."""

    def names(self, folder: str) -> list[str]:
        """Return what lies in a folder. Raises ``FileError``."""
        ...

    def subfolders(self, folder: str) -> list[str]:
        """Return the names of its sub-folders. Raises ``FileError``."""
        ...

    def read(self, folder: str, name: str, *, bytes_max: int) -> bytes:
        """Return a regular file's content. Raises ``FileError``, also if it is larger."""
        ...

    def move(self, source: str, path: str) -> None:
        """Put a file of the same disk in place. Raises ``FileError``, and removes it then."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        ...


class LocalFiles:
    """Files of this machine."""

    def names(self, folder: str) -> list[str]:
        """Return what lies in a folder."""
        try:
            return sorted(os.listdir(folder))
        except OSError as error:
            raise FileError(f"{folder}: {_reason(error)}; check the path") from None

    def subfolders(self, folder: str) -> list[str]:
        """Return the names of its sub-folders, hidden ones left out."""
        try:
            with os.scandir(folder) as found:
                return sorted(e.name for e in found if e.is_dir() and not e.name.startswith("."))
        except OSError as error:
            raise FileError(f"{folder}: {_reason(error)}; check the path") from None

    def read(self, folder: str, name: str, *, bytes_max: int) -> bytes:
        """Return the content of a regular file that lies in the folder, links resolved."""
        try:
            root = Path(folder).resolve()
            path = (root / name).resolve()
        except (OSError, RuntimeError) as error:
            raise FileError(f"{name}: {error}; put the file itself there") from None
        if not path.is_relative_to(root):
            raise FileError(f"{name}: a link out of the folder; put the file itself there")
        try:
            # Not to wait for a writer, should it be a pipe.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                file = open(descriptor, "rb")  # noqa: SIM115 (it is entered below)
            except OSError:  # a folder, which stays open
                os.close(descriptor)
                raise
            with file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise FileError(f"{name}: it is no regular file; put one there")
                if status.st_size > bytes_max:
                    raise FileError(
                        f"{name}: {status.st_size} bytes, more than such a file needs "
                        f"({bytes_max}); is it the right one?"
                    )
                # One byte more would show that it grows while it is read.
                content = file.read(status.st_size + 1)
        except OSError as error:
            raise FileError(f"{name}: {_reason(error)}; check the file") from None
        if len(content) != status.st_size:
            raise FileError(f"{name}: it changed while it was read; try again")
        return content

    def move(self, source: str, path: str) -> None:
        """Rename a file: whoever opens the path finds it whole, or what was there before."""
        try:
            os.replace(source, path)
        except OSError as error:
            self.remove(source)
            raise FileError(f"{path}: {_reason(error)}") from None

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        Path(path).unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
