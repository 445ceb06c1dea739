"""How the store comes to an adapter's content: it asks, goes on, and hears of it later."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from weft.actors.adapters import adapter, peft_config, safetensors
from weft.actors.adapters.adapter import Adapter
from weft.actors.adapters.base import BaseShapes
from weft.actors.adapters.errors import BadAdapter
from weft.actors.adapters.files import FileError, Files

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"

# Of what is said about an adapter. It quotes names from files, and goes into every catalog.
REASON_CHARACTERS_MAX = 1024


class Loaded(NamedTuple):
    """What became of one ``start``."""

    ticket: int
    result: Adapter | BadAdapter


class Loader(Protocol):
    """Reads and checks adapters. Neither call waits."""

    def start(self, source: str) -> int:
        """Ask for the adapter of a source, and return a number to know the answer by."""
        ...

    def finished(self) -> list[Loaded]:
        """Return what has been read since the last call, each ticket once."""
        ...


class FolderLoader:
    """Reads local folders in the order in which they were asked for, one at each call."""

    def __init__(self, files: Files, base: BaseShapes, *, rank_max: int) -> None:
        self._files = files
        self._base = base
        self._rank_max = rank_max
        self._asked: deque[tuple[int, str]] = deque()
        self._tickets = 0

    def start(self, source: str) -> int:
        """Queue a folder."""
        self._tickets += 1
        self._asked.append((self._tickets, source))
        return self._tickets

    def finished(self) -> list[Loaded]:
        """Read the folder that has waited longest."""
        if not self._asked:
            return []
        ticket, folder = self._asked.popleft()
        try:
            return [Loaded(ticket, self._read(folder))]
        except (BadAdapter, FileError) as error:
            return [Loaded(ticket, BadAdapter(str(error)[:REASON_CHARACTERS_MAX]))]

    def _read(self, folder: str) -> Adapter:
        """Return a folder's adapter. Raises ``BadAdapter`` or ``FileError``."""
        names = self._files.names(folder)
        if CONFIG_NAME not in names:
            raise BadAdapter(f"{CONFIG_NAME}: there is none in {folder}; check the path")
        if WEIGHTS_NAME not in names:
            if PICKLE_NAME in names:
                raise BadAdapter(
                    f"{PICKLE_NAME}: pickled weights can run code and are never read; convert "
                    f"them to {WEIGHTS_NAME}, as PEFT's save_pretrained does"
                )
            raise BadAdapter(f"{WEIGHTS_NAME}: there is none in {folder}; check the path")
        raw = self._files.read(folder, CONFIG_NAME, bytes_max=peft_config.CONFIG_BYTES_MAX)
        try:
            config = peft_config.parse(raw)
        except BadAdapter as error:
            raise BadAdapter(f"{CONFIG_NAME}: {error}") from None
        limit = self._base.adapter_bytes_max(self._rank_max)
        weights = self._files.read(folder, WEIGHTS_NAME, bytes_max=limit)
        try:
            tensors = safetensors.parse(weights)
            return adapter.build(config, tensors, self._base, rank_max=self._rank_max)
        except BadAdapter as error:
            raise BadAdapter(f"{WEIGHTS_NAME}: {error}") from None
