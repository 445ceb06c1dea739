"""Scheduler and adapters: whose weights lie in host memory, and whose stay on the device."""

from __future__ import annotations

from weft.runtime.messages.base import Message


class Acquire(Message, frozen=True):
    """Scheduler to adapters: pin this adapter's weights in host memory."""

    digest: str


class Acquired(Message, frozen=True):
    """Adapters to scheduler: the weights lie at ``path`` until released."""

    digest: str
    path: str  # a safetensors file in the run directory, named by digest
    rank: int
    size_bytes: int
    granules: int  # in the layer that has most, of one tensor-parallel rank's share
    was_read: bool = False  # it was not in host memory when it was asked for


class AcquireFailed(Message, frozen=True):
    """Adapters to scheduler: the weights can no longer be had."""

    digest: str
    reason: str


class Release(Message, frozen=True):
    """Scheduler to adapters: unpin. One for each ``Acquired``."""

    digest: str


class DeviceRoom(Message, frozen=True):
    """Scheduler to adapters: what adapters may take on the device that nobody uses now.

    The rest is left to what runs, so that a batch always finds slots, and half of the pages.
    """

    adapters_max: int
    pages_max: int
    page_granules: int  # granules of adapter weights that one layer's page holds


class KeepOnDevice(Message, frozen=True):
    """Adapters to scheduler: these are to stay on the device, and no others.

    Together they are within every ``DeviceRoom``.
    """

    digests: list[str]
