"""What the router is to hear of a scheduler, where there are several."""

from __future__ import annotations

from collections.abc import Set

from weft.actors.scheduler.slots import AdapterSlots
from weft.runtime.messages import Progress


class ProgressNotes:
    """What has happened since the router was last told."""

    def __init__(self) -> None:
        self.accepted: list[str] = []
        self.ended: list[str] = []
        self.metered: list[str] = []
        self._resident: Set[str] = frozenset()  # adapters on the device, as the router knows them
        self._seen: tuple[AdapterSlots | None, int] = (None, 0)  # and changes of it up to then

    def take(self, slots: AdapterSlots | None) -> Progress | None:
        """Return what is to be told, if anything."""
        loaded, evicted = self._changed(slots)
        if not (self.accepted or self.ended or self.metered or loaded or evicted):
            return None
        progress = Progress(self.accepted, self.ended, self.metered, loaded, evicted)
        self.accepted, self.ended, self.metered = [], [], []
        return progress

    def _changed(self, slots: AdapterSlots | None) -> tuple[list[str], list[str]]:
        """Return which adapters have come, and which have gone."""
        seen = (slots, slots.changes if slots else 0)
        if seen == self._seen:
            return [], []
        self._seen = seen
        before, self._resident = self._resident, frozenset(slots.resident if slots else ())
        return list(self._resident - before), list(before - self._resident)
