"""Adapters on their way to the device while steps are computed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple, Protocol

import torch

from weft.actors.runner.adapter_file import AdapterFile
from weft.actors.runner.stream import Mark, Run, Stream
from weft.runtime.messages import AdapterLoad, Step


class Slots(Protocol):
    """Where adapters go."""

    def fill(
        self,
        slot: int,
        file: AdapterFile,
        pages: Sequence[int],
        run: Run = ...,
    ) -> None:
        """Replace what a slot holds by an adapter, whose weights are written into ``pages``.

        ``run`` has the device's part of it done, now or later.
        """
        ...


class Streams(NamedTuple):
    """Of a device that works beside the host."""

    steps: Stream
    copies: Stream


class _Load(NamedTuple):
    pages: frozenset[int]
    copy: Future[Mark | None]

    @property
    def is_done(self) -> bool:
        """Whether nobody would wait for it, be it that it has failed."""
        if not self.copy.done():
            return False
        if self.copy.exception() is not None:
            return True
        copied = self.copy.result()
        return copied is None or copied.is_past


class Loads:
    """Copies adapters one after the other, beside what is computed meanwhile.

    A load overwrites pages that no step reads any more, and a step may begin to use it. Between the
    two it may go on while others are computed: ``begin`` opens the file, so that it may have lost
    its name afterwards, and whoever uses the slot, or gets one of the pages, waits for the end.

    A thread reads the file and lays it out. Where steps and copies are streams of a device, the
    copies wait there for the steps that were launched before, the next step that uses them waits
    for the copies, and the host for neither: only, before it launches that step, for the thread.
    """

    def __init__(
        self,
        slots: Slots,
        streams: Streams | None = None,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - a value
    ) -> None:
        """``streams`` are the device's; None: it is the host, and computes what it launches."""
        self._slots = slots
        self._streams = streams
        self._pending: dict[int, _Load] = {}  # by slot
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="loads")
        # The copier takes one core, and not those on which steps are computed. torch keeps this
        # number by thread, but some of its libraries for all: they get theirs back.
        threads = torch.get_num_threads()
        self._copier.submit(_begin_to_copy, device).result()
        torch.set_num_threads(threads)

    def make_way(self, step: Step) -> None:
        """Wait for loads whose slot or pages a step gives to others, before it is applied."""
        if not self._pending:
            return
        taken = {
            *step.page_ids,
            *chain.from_iterable(join.pages for join in step.joins),
            *chain.from_iterable(load.pages for load in step.loads),
        }
        slots = {load.slot for load in step.loads}
        self.wait(
            slot
            for slot, load in self._pending.items()
            if slot in slots or not taken.isdisjoint(load.pages)
        )

    def begin(self, load: AdapterLoad) -> None:
        """Open an adapter's file, and let it be copied. ``make_way`` has been called.

        Nothing is read of it here, or its pages would be looked up while a step waits.
        """
        descriptor = os.open(load.path, os.O_RDONLY | os.O_CLOEXEC)
        before = None if self._streams is None else self._streams.steps.mark()
        copy = self._copier.submit(self._copy, load, descriptor, before)
        self._pending[load.slot] = _Load(frozenset(load.pages), copy)

    def wait(self, slots: Iterable[int] | None = None) -> None:
        """Let the next step wait for the loads of some slots, or of all.

        Raises what went wrong with them.
        """
        for slot in list(self._pending if slots is None else slots):
            if slot in self._pending:
                copied = self._pending.pop(slot).copy.result()
                if self._streams is not None and copied is not None:
                    self._streams.steps.wait_for(copied)

    @property
    def under_way(self) -> list[int]:
        """Slots for whose adapters a step would wait."""
        return [slot for slot, load in self._pending.items() if not load.is_done]

    def _copy(self, load: AdapterLoad, descriptor: int, before: Mark | None) -> Mark | None:
        """Copy, in the thread; return the place in the order of copies at which it is there.

        ``before`` is the place in the order of steps from which on nobody reads the pages.
        """
        file = _taken(descriptor, load.digest)
        if self._streams is None or before is None:
            self._slots.fill(load.slot, file, load.pages)
            return None
        copies = self._streams.copies
        copies.wait_for(before)
        self._slots.fill(load.slot, file, load.pages, copies.run)
        return copies.mark()


def _taken(descriptor: int, digest: str) -> AdapterFile:
    """Map the file that is open, whatever has become of its name, and close it: the map stays."""
    try:
        return AdapterFile(descriptor, digest)
    finally:
        os.close(descriptor)


def _begin_to_copy(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)  # or pinned memory would be asked of the first device
    # Asked first, or the thread's first operation would set the number to that of all cores. A team
    # of its own would be more threads than cores, and OpenMP's then never spin: steps with adapters
    # took 1.5 times as long.
    torch.get_num_threads()
    torch.set_num_threads(1)
