"""Which folders and sources a request may name."""

from __future__ import annotations

import os.path

from weft.actors.adapters.errors import BadAdapter, shown
from weft.runtime import sources
from weft.runtime.config import Config
from weft.runtime.sources import BadSource, Remote


class Roots:
    """The folders and sources that the configuration names, and all below them; nothing else.

    Paths are compared as they are on the disk, links resolved.
    """

    def __init__(self, config: Config) -> None:
        named = [sources.split_digest(source)[0] for source in config.adapters.values()]
        shared = [config.adapters_folder] if config.adapters_folder else []
        self._relative_to = next(iter([*config.adapter_roots, *shared]), None)
        folders = [source for source in named if not sources.is_remote(source)]
        self._roots = [*config.adapter_roots, *shared, *folders]
        remote = [source for source in named if sources.is_remote(source)]
        self._prefixes = [
            sources.parse_prefix(prefix) for prefix in (*config.adapter_sources, *remote)
        ]

    def resolve(self, source: str, digest: str | None) -> tuple[str, str | None]:
        """Return the source that a request means, and the digest that it must have, if any.

        Raises ``BadAdapter``.
        """
        try:
            place, digest = sources.split_digest(sources.with_digest(source, digest))
            found = sources.parse(place)
        except BadSource as error:
            raise BadAdapter(f"{shown(source)}: {error}") from None
        if isinstance(found, str):
            found = sources.hub_id(found, self._relative_to) or self._folder(found)
        if isinstance(found, Remote) and not self._may_fetch(found):
            raise BadAdapter(
                f"{shown(str(found))} is not among the sources that adapters may come from; have "
                f"it, or what it lies below, added to adapter_sources"
            )
        return str(found), digest

    def _may_fetch(self, source: Remote) -> bool:
        return any(sources.allows(prefix, source) for prefix in self._prefixes)

    def _folder(self, source: str) -> str:
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
