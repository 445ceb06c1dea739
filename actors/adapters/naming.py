"""Gives names to content and takes them away, so that what is needed stays in host memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from weft.actors.adapters.asked import Asked, CannotDo
from weft.actors.adapters.device_pins import DevicePins
from weft.actors.adapters.leaving import Leaving
from weft.actors.adapters.loader import Content, Facts
from weft.actors.adapters.memory import HostMemory
from weft.actors.adapters.registry import Registry
from weft.runtime.messages import AdapterEntry, AdapterState

_log = logging.getLogger(__name__)


class Naming:
    """The only one that changes what names mean.

    Content that is pinned by name is kept in host memory. What has lost its last name leaves (see
    ``Leaving``), and until it is gone it is spared, for running requests may need it.

    Invariants, checked by ``check``: what leaves has no name, and what is pinned is kept.
    """

    def __init__(
        self,
        registry: Registry,
        memory: HostMemory,
        device_pins: DevicePins,
        schedulers: Iterable[str],
    ) -> None:
        self.leaving = Leaving(schedulers)
        self._registry = registry
        self._memory = memory
        self._device_pins = device_pins

    def name(
        self, name: str, content: Content, *, created_s: int, pinned: bool | None = None
    ) -> list[Asked]:
        """Let a name mean content, pinned or not or as it was; what it meant before may leave.

        Return the unloads that waited for the end of this content: it has a name again.
        """
        before = self._registry.find(name)
        unloads = self.leaving.return_(content.digest)
        self._registry.put(_entry(name, content, created_s), content.facts)
        if pinned is not None:
            self._registry.set_pinned(name, pinned=pinned)
        # First what is kept: what leaves takes a place, for which somebody else may have to go.
        self._keep_or_not(content.digest)
        if before is not None:
            self._leave(before.digest)
        return unloads

    def know(self, name: str, root: str, *, created_s: int, refused: str | None = None) -> None:
        """Let a name without content be known: it has not been read yet, or is refused."""
        if refused is not None:
            _log.warning("%s cannot be used: %s", name, refused)
        self._registry.put(AdapterEntry(name, root, "", 0, created_s, refused))

    def remove(self, name: str) -> bool:
        """Let a name mean nothing; return whether its content leaves with it."""
        return self._leave(self._registry.remove(name).digest)

    def set_pinned(self, name: str, *, pinned: bool, on_device: bool | None = None) -> None:
        """Let a name stay in host memory, or no longer; and on the device, None: as it was."""
        self._registry.set_pinned(name, pinned=pinned, on_device=on_device)
        entry = self._registry.find(name)
        assert entry is not None
        self._keep_or_not(entry.digest)

    def check_pin(self, name: str, facts: Facts, *, on_device: bool) -> None:
        """Raise ``CannotDo`` unless a name may stay in host memory, and on the device."""
        if on_device:
            others_there = self._registry.on_device(beside=name)
            self._device_pins.check(others_there | {facts.digest: facts.granules})
        others = self._registry.pinned_beside(name) - {facts.digest}
        taken = sum(map(self._registry.size_bytes, others))
        if taken + facts.size_bytes > self._memory.adapter_bytes_max:
            text = (
                f"pinned: the adapter takes {facts.size_bytes} bytes, {taken} are pinned already, "
                f"and {self._memory.adapter_bytes_max} may be, half of adapter_host_memory_mib; "
                f"unpin another one, or raise it"
            )
            raise CannotDo("invalid_value", text, "pinned")

    def describe(self, entry: AdapterEntry) -> AdapterState:
        """Return what is true of a name, as far as the store knows: schedulers know the rest."""
        return AdapterState(
            name=entry.name,
            version=entry.version,
            digest=entry.digest or None,
            root=entry.root,
            rank=entry.rank or None,
            size_bytes=self._registry.size_bytes(entry.digest) if entry.digest else None,
            tier="host" if self._memory.cache.get(entry.digest) else "disk",
            pinned=self._registry.is_pinned(entry.name),
            pinned_on_device=self._registry.is_on_device(entry.name),
            requests=0,
            requests_total=0,
            created_s=entry.created_s,
            refused=entry.refused,
            defaults=entry.defaults.summary if entry.defaults else None,
        )

    def retired(self, scheduler: str, digest: str, version: int) -> list[Asked]:
        """Hear that a scheduler has done with what leaves, and forget it if it was the last.

        Return the unloads that are done by that.
        """
        unloads = self.leaving.retired(scheduler, digest, version)
        if unloads is None:
            return []
        self._memory.drop(digest)
        self._registry.forget(digest)
        return unloads

    def check(self) -> None:
        """Assert the invariants."""
        for entry in self._registry:
            assert entry.digest not in self.leaving, f"{entry.name} leaves and has a name"
            if self._registry.is_pinned(entry.name):
                assert self._memory.cache.is_kept(entry.digest)

    def _leave(self, digest: str) -> bool:
        """Let content go that a name meant until now, unless another one does: does it go?"""
        goes = bool(digest) and not self._registry.names(digest)
        if goes:
            self.leaving.leave(digest, self._registry.version)
        self._keep_or_not(digest)
        return goes

    def _keep_or_not(self, digest: str) -> None:
        """Keep in host memory what is pinned by name; what running requests may need goes last."""
        if self._registry.is_wanted(digest):
            self._memory.cache.keep(digest)
        elif digest in self.leaving:
            self._memory.spare(digest)
        else:
            self._memory.let_go(digest)


def _entry(name: str, content: Content, created_s: int) -> AdapterEntry:
    facts = content.facts
    return AdapterEntry(
        name,
        content.source,
        facts.digest,
        facts.rank,
        created_s,
        tokens_added=facts.tokens_added,
        is_additive=facts.is_additive,
        invocation_tokens=facts.invocation_tokens,
        defaults=facts.defaults,
    )
