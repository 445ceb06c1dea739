"""Downloads in child processes, as many at once as there are children: one for each source.

One thread does it all, and waits for nothing: the epoll object that it was given becomes readable
when a child has something to say.
"""

from __future__ import annotations

import select
import signal
import time
from collections import deque
from typing import NamedTuple

import msgspec

from weft.actors.adapters.errors import BadAdapter, Unavailable
from weft.actors.adapters.sources.jobs import Answer, Failed, Fetched, Job, Setup
from weft.actors.children import Child, Children

# Downloads at once: enough that one slow server does not hold up the others.
CHILDREN_MAX = 4

# For one adapter: what looking it up and some attempts may take, and then a byte in a microsecond.
PATIENCE_S = 120.0
BYTES_PER_S_MIN = 1024 * 1024

# What the libraries would do beside: bars on a terminal, telling who asks. Downloads by Xet obey no
# limit on a file's size, and keep a cache of their own.
_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
}

_MODULE = "weft.actors.adapters.sources.child"

# Between the end of a child's last words and its exit code.
_DEATH_S = 1.0


class Downloaded(NamedTuple):
    """What became of one ``start``."""

    job: Job
    result: Fetched | BadAdapter


class Downloads:
    """A queue of jobs, each at most once. A child without a job is ended."""

    def __init__(self, setup: Setup, wakes: select.epoll) -> None:
        self.deaths = 0  # of children that had not been told to end
        self._wakes = wakes
        self._deadline_s = PATIENCE_S + setup.weights_bytes_max / BYTES_PER_S_MIN
        self._waiting: deque[Job] = deque()
        self._children = Children[Job](_MODULE, setup, wakes, _ENVIRONMENT)
        self._done: list[Downloaded] = []

    def __len__(self) -> int:
        """Return how many jobs wait or are under way."""
        return len(self._waiting) + len(self._children.tasks)

    def start(self, job: Job) -> None:
        """Queue a job."""
        assert job not in self._waiting, job
        self._waiting.append(job)
        self._distribute()

    def cancel(self, job: Job) -> None:
        """Forget a job, whose answer does not come then."""
        if job in self._waiting:
            self._waiting.remove(job)
        for child in self._children:
            if child.task == job:
                self._children.bury(child)
        self._distribute()

    def finished(self) -> list[Downloaded]:
        """Hear the children, and end those that are late."""
        for child, packet in self._children.heard():
            self._hear(child, packet)
        for child in self._children.late(time.monotonic()):
            self._fail(
                self._children.bury(child),
                f"its download took more than {self._deadline_s:.0f} seconds, and was given "
                f"up; is the network that slow, and the adapter the right one?",
            )
        self._distribute()
        done, self._done = self._done, []
        return done

    def wait(self) -> None:
        """Wait for a child's word; something must be under way."""
        assert self, "nothing is under way"
        deadline = min(self._children.deadlines)
        self._wakes.poll(max(0.0, deadline - time.monotonic()) + 0.001)

    def close(self) -> None:
        """Kill the children."""
        for child in self._children:
            self._children.bury(child)
        self._waiting.clear()

    def check(self) -> None:
        """Assert that no job is done twice, and that there are no more children than may be."""
        jobs = [*self._waiting, *self._children.tasks]
        assert len(set(jobs)) == len(jobs), f"a job twice in {jobs}"
        assert len(self._children) <= CHILDREN_MAX

    def _distribute(self) -> None:
        """Give idle children something to do, or an end, and let others come for the rest."""
        for child in self._children:
            if child.task is None:
                if self._waiting:
                    self._begin(child)
                else:
                    self._children.bury(child)
        while self._waiting and len(self._children) < CHILDREN_MAX:
            self._begin(self._children.start())

    def _begin(self, child: Child[Job]) -> None:
        # Whoever has asked for something now goes before what is only to be known some time.
        job = next((job for job in self._waiting if not job.may_be_old), self._waiting[0])
        self._waiting.remove(job)
        child.begin(job, job, time.monotonic() + self._deadline_s)

    def _hear(self, child: Child[Job], packet: bytes) -> None:
        answer = _answer(packet)
        job, child.task = child.task, None
        assert job is not None, "a child without a job is gone"
        if answer is None:
            self.deaths += 1
            code = child.end(wait_s=_DEATH_S if not packet else 0.0)
            self._children.bury(child)
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            self._fail(job, f"the process that downloaded it broke ({how}); try again")
        elif isinstance(answer, Failed):
            kind = Unavailable if answer.is_transient else BadAdapter
            self._done.append(Downloaded(job, kind(answer.reason)))
        else:
            self._done.append(Downloaded(job, answer))

    def _fail(self, job: Job | None, reason: str) -> None:
        assert job is not None
        self._done.append(Downloaded(job, Unavailable(f"{job.source}: {reason}")))


def _answer(packet: bytes) -> Answer | None:
    """Decode what a child says; None: it is nothing that one should say."""
    try:
        answer: Answer = msgspec.msgpack.decode(packet, type=Answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return answer
