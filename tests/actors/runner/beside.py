"""A device that works beside the host, played by the host: it does nothing before it must."""

import copy
import dataclasses
from collections import deque

import torch

from tests.actors.scheduler_harness import Harness
from weft.actors.runner import backend, operations
from weft.actors.runner.ahead import AheadMeans
from weft.actors.runner.engine import STEPS_MAX
from weft.actors.runner.lora import HostLora

CPU = torch.device("cpu")


class LateStream:
    """Does work as late as it may: when somebody waits for it."""

    def __init__(self):
        self._waiting = deque()
        self._given = self.done = 0

    @property
    def waiting(self):
        """How much work has been given and not been done."""
        return len(self._waiting)

    def run(self, work):
        self._waiting.append(work)
        self._given += 1

    def mark(self):
        return LateMark(self, self._given)

    def wait_for(self, mark):
        self.run(mark.wait)

    def work_until(self, place):
        with torch.inference_mode():
            while self.done < place:
                self._waiting.popleft()()
                self.done += 1


class SoonStream(LateStream):
    """Does work as soon as it may: when it is given."""

    def run(self, work):
        super().run(work)
        self.work_until(self._given)


class LateMark:
    def __init__(self, stream, place):
        self._stream = stream
        self._place = place

    @property
    def is_past(self):
        return self._stream.done >= self._place

    def wait(self):
        self._stream.work_until(self._place)


def call(compute, batch):
    """What a graph is by definition. Like a GPU's, its first batch is computed when it is made."""
    compute(batch)
    return compute


def replay(compute, batch):
    """What a graph does: it computes the same memory again, whatever it is given."""
    compute(batch)
    # All graphs have one plan of attention, of which each knows where it lay when it was made.
    batch = dataclasses.replace(batch, attention=copy.copy(batch.attention))

    def again(other):
        for one, two in ((batch.tokens, other.tokens), (batch.sampled, other.sampled)):
            assert (one.data_ptr(), one.shape) == (two.data_ptr(), two.shape)
        return compute(batch)

    return again


class PlayedLora(HostLora):
    """A kernel for CPUs whose tables are the device's: they change when copies come to it."""

    def __init__(self, arena, tables, widths):
        self._host, self._device = tables, copy.deepcopy(tables)
        super().__init__(arena, self._device, widths)

    def stage(self, slot):
        arrays = {name: value for name, value in vars(self._host).items() if name != "ranks_max"}
        news = {name: array[slot].copy() for name, array in arrays.items()}
        self._device.ranks_max = max(self._device.ranks_max, self._host.ranks_max)

        def send():
            for name, row in news.items():
                getattr(self._device, name)[slot] = row

        return send


def _played(arena, tables, widths, *, limits, compute_dtype):
    return PlayedLora(arena, tables, widths)


def on_host(record=call, stream=None, copies=None):
    """Kernels for CPUs, driven as a GPU's are."""
    means = AheadMeans(stream or LateStream(), copies or LateStream(), record and (lambda: record))
    return backend.host(operations.choose(CPU, int8=False), means)._replace(lora=_played)


def interpreted(record=replay, stream=None):
    """A GPU's kernels, in Triton's interpreter."""
    means = AheadMeans(stream or LateStream(), LateStream(), record and (lambda: record))
    return backend.in_triton(operations.in_triton(CPU, processors=2), 2, means)


class AheadHarness(Harness):
    """Launches a step before it collects the one before, as the runner does."""

    def __init__(self, **options):
        super().__init__(**options)
        self.launched = deque()
        self.overlaps = 0

    def run_step(self):
        while self.advance():
            pass
        while self.steps and len(self.launched) < STEPS_MAX:
            self.launched.append(self.engine.launch(self.steps.popleft()))
        if not self.launched:
            return False
        self.overlaps += len(self.launched) > 1 and not self.launched[0].is_done
        self.receive("runner0", self.launched.popleft().collect())
        return True
