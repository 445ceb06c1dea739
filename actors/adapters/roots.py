"""Which folders a request may name."""

from __future__ import annotations

import os.path

from weft.actors.adapters.errors import BadAdapter, shown
from weft.runtime.config import Config


class Roots:
    """The folders that the configuration names, and everything below them; nothing else.

    Paths are compared as they are on the disk, links resolved.
    """

    def __init__(self, config: Config) -> None:
        shared = [config.adapters_folder] if config.adapters_folder else []
        self._relative_to = next(iter([*config.adapter_roots, *shared]), None)
        self._roots = [*config.adapter_roots, *shared, *config.adapters.values()]

    def resolve(self, source: str) -> str:
        """Return the folder that a request means. Raises ``BadAdapter``."""
        if not source or "\0" in source:
            raise BadAdapter("it names no folder; send an adapter's path")
        path = source
        if not os.path.isabs(path):
            if self._relative_to is None:
                raise BadAdapter(
                    f"{shown(source)} is relative, and there is no folder to begin at; configure "
                    f"adapter_roots, or send an absolute path"
                )
            path = os.path.join(self._relative_to, path)
        real = os.path.realpath(path)
        if not any(_is_within(real, os.path.realpath(root)) for root in self._roots):
            raise BadAdapter(
                f"{shown(source)} is outside the folders that adapters may come from; have one "
                f"that holds it added to adapter_roots"
            )
        return real


def _is_within(path: str, root: str) -> bool:
    return path == root or path.startswith(os.path.join(root, ""))
