"""A folder whose sub-folders are adapters: which have come, and which are gone."""

from __future__ import annotations

import logging
import os.path

from weft.actors.adapters.asked import NAME_CHARACTERS_MAX
from weft.actors.adapters.files import FileError, Files

# Between two looks. A look at a thousand sub-folders takes a millisecond.
SCAN_INTERVAL_NS = 1_000_000_000

_log = logging.getLogger("weft.adapters")


class WatchedFolder:
    """What was seen at the last look. A folder that cannot be read says nothing of it."""

    def __init__(self, root: str | None, files: Files) -> None:
        """``root`` is None if no folder is watched."""
        self._root = None if root is None else os.path.realpath(root)
        self._files = files
        self._seen: set[str] = set()
        self._ignored: set[str] = set()  # unloaded on purpose: until they are gone and come back
        self._next_ns = 0
        self._problem = ""

    def path(self, name: str) -> str:
        """Return where the adapter of a name lies."""
        return os.path.join(self._root or "", name)

    def is_due(self, now_ns: int) -> bool:
        """Whether it is time for another look."""
        return self._root is not None and now_ns >= self._next_ns

    def ignore(self, name: str) -> None:
        """Do not tell of a name again before its folder has been gone."""
        if name in self._seen:
            self._ignored.add(name)

    def scan(self, now_ns: int) -> list[tuple[str, str | None]]:
        """Return every name that is there with its path, and with None every one that went."""
        assert self._root is not None
        self._next_ns = now_ns + SCAN_INTERVAL_NS
        try:
            found = self._files.subfolders(self._root)
        except FileError as error:
            if str(error) != self._problem:
                _log.warning("adapters_folder: %s", error)
            self._problem = str(error)
            return []
        self._problem = ""
        there = {n for n in found if len(n) <= NAME_CHARACTERS_MAX and n.isprintable()}
        gone = sorted(self._seen - there)
        self._seen = there
        self._ignored &= there
        news: list[tuple[str, str | None]] = [(name, None) for name in gone]
        return news + [(name, self.path(name)) for name in sorted(there - self._ignored)]
