"""Puts together what downloads adapters, as the configuration says."""

from __future__ import annotations

import os
import select
from pathlib import Path

from weft.actors.adapters.base import BaseShapes
from weft.actors.adapters.sandbox import SandboxedLoader
from weft.actors.adapters.sources.disk_cache import DiskCache
from weft.actors.adapters.sources.downloads import Downloads
from weft.actors.adapters.sources.jobs import Setup
from weft.actors.adapters.sources.loader import SourcedLoader
from weft.runtime.config import Config, ConfigError

_MIB = 1024 * 1024


def with_sources(
    folders: SandboxedLoader, config: Config, base: BaseShapes, wakes: select.epoll
) -> SourcedLoader:
    """Return a loader that downloads what is not on this machine. Raises ``ConfigError``."""
    folder = Path(config.adapter_cache or _default_folder())
    bytes_max = config.adapter_cache_mib * _MIB
    try:
        cache = DiskCache(folder, bytes_max)
    except OSError as error:
        raise ConfigError(f"adapter_cache: {folder} cannot be made or written: {error}") from None
    adapter_bytes_max = base.adapter_bytes_max(config.max_lora_rank, config.whole_modules_bytes_max)
    setup = Setup(str(folder), bytes_max, adapter_bytes_max)
    return SourcedLoader(folders, Downloads(setup, wakes), cache)


def _default_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home, "weft", "adapters")
