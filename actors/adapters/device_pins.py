"""Adapters that are to stay on the device, within what it has for them."""

from __future__ import annotations

from collections.abc import Mapping

from weft.actors.adapters.asked import NO_ROOM_RETRY_S, CannotDo
from weft.runtime.actor import Send
from weft.runtime.messages import DeviceRoom, KeepOnDevice


class DevicePins:
    """What each scheduler has room for, and what it was told to keep."""

    def __init__(self) -> None:
        self._rooms: dict[str, DeviceRoom] = {}  # by the scheduler's role
        # Digests, by the scheduler's role; None: it may have been told something that did not hold
        # any more when it had new runners.
        self._told: dict[str, list[str] | None] = {}

    def hear(self, scheduler: str, room: DeviceRoom) -> None:
        """Take in what a scheduler has room for, at its start and whenever its runners are new.

        What it was told before may still be on its way to it, so it is told once more.
        """
        self._told[scheduler] = None if scheduler in self._rooms else []
        self._rooms[scheduler] = room

    def forget(self, scheduler: str) -> None:
        """Tell nothing to a scheduler that is gone."""
        self._rooms.pop(scheduler, None)
        self._told.pop(scheduler, None)

    def check(self, granules: Mapping[str, int]) -> None:
        """Raise ``CannotDo`` unless all of these may stay, on every device; granules by digest."""
        if not self._rooms:
            text = "no device is ready yet; try again later"
            raise CannotDo("queue_full", text, None, NO_ROOM_RETRY_S)
        for room in self._rooms.values():
            if len(granules) > room.adapters_max:
                text = (
                    f"pinned: {len(granules)} adapters would stay on the device, and "
                    f"{room.adapters_max} may, as many as max_loaded_loras is more than "
                    f"max_loras_per_batch; unpin another one, or raise the former"
                )
                raise CannotDo("invalid_value", text, "pinned")
            pages = sum(-(-count // room.page_granules) for count in granules.values())
            if pages > room.pages_max:
                text = (
                    f"pinned: adapters that stay on the device would take {pages} of its pages, "
                    f"and may take {room.pages_max}, half of them; unpin another one, or raise "
                    f"kv_cache_memory_mib (on a CPU) or gpu_memory_utilization (on a GPU)"
                )
                raise CannotDo("invalid_value", text, "pinned")

    def due(self, digests: list[str]) -> list[Send]:
        """Return what must be told, now that these are to stay."""
        behind = [scheduler for scheduler, told in self._told.items() if told != digests]
        self._told |= dict.fromkeys(behind, digests)
        return [Send(scheduler, KeepOnDevice(digests)) for scheduler in behind]
