"""Adapters in local folders, and their checked weights in the run directory's memory files."""

from __future__ import annotations

import json
from pathlib import Path

from weft.actors.adapters.peft_folder import Adapter, RefusedAdapter, read_base, with_adapter
from weft.actors.adapters.tensor_file import write
from weft.runtime.config import Config
from weft.runtime.messages import Acquired, AcquireFailed, AdapterEntry


class Folders:
    """The configured folders. Host memory is one file for each digest, in ``{run_dir}/adapters``.

    A file holds an adapter in one form, whatever the folder looked like: tensors
    ``layers.{i}.{module}.A`` [rank, in] and ``.B`` [out, rank], and in its metadata the digest and
    each module's scale.
    """

    def __init__(self, config: Config, run_dir: Path, started_s: int) -> None:
        """``started_s`` is the unix time that the adapters are said to be known since."""
        self._config = config
        self._base = read_base(Path(config.model))
        self._memory = run_dir / "adapters"
        self._memory.mkdir(mode=0o700, exist_ok=True)
        self._started_s = started_s
        self._folders: dict[str, Path] = {}  # by digest

    def survey(self) -> list[AdapterEntry]:
        """Check every configured adapter; those that cannot be served say why."""
        return [self._entry(name, Path(root)) for name, root in self._config.adapters.items()]

    def put(self, digest: str) -> Acquired | AcquireFailed:
        """Write an adapter's weights to host memory, if they are not there, and say where."""
        path = self._path(digest)

        def write_if_same(adapter: Adapter) -> Acquired:
            if adapter.digest != digest:
                raise RefusedAdapter("its files changed since the server started: restart weft")
            metadata = {"digest": digest, "scales": json.dumps(adapter.scales)}
            size = write(path, adapter.tensors, metadata)
            return Acquired(digest, str(path), adapter.rank, size)

        try:
            folder = self._folders[digest]
            return with_adapter(folder, self._base, self._config.max_lora_rank, write_if_same)
        except RefusedAdapter as refusal:
            return AcquireFailed(digest, str(refusal))

    def drop(self, digest: str) -> None:
        """Free an adapter's host memory."""
        self._path(digest).unlink()

    def _path(self, digest: str) -> Path:
        return self._memory / f"{digest}.safetensors"

    def _entry(self, name: str, folder: Path) -> AdapterEntry:
        def entry(digest: str, rank: int, refused: str | None) -> AdapterEntry:
            return AdapterEntry(name, str(folder), digest, rank, self._started_s, refused)

        try:
            made = with_adapter(
                folder,
                self._base,
                self._config.max_lora_rank,
                lambda adapter: entry(adapter.digest, adapter.rank, None),
            )
        except RefusedAdapter as refusal:
            return entry("", 0, str(refusal))
        self._folders.setdefault(made.digest, folder)
        return made
