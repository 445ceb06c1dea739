"""Reads adapters in child processes that have given up all they can, and believes little of them.

An adapter that crashes its child, hangs it or exhausts its memory is refused, alone. One
thread does it all, and waits for nothing: the epoll object that it was given becomes readable when
a child has something to say.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

import msgspec

from weft.actors.adapters import defaults
from weft.actors.adapters.base import BaseShapes
from weft.actors.adapters.child import EXIT_MEMORY, Answer, Job, Refusal, Setup
from weft.actors.adapters.errors import BadAdapter, GivenUp, shown
from weft.actors.adapters.loader import REASON_CHARACTERS_MAX, Content, Facts, Loaded
from weft.actors.children import Child, Children
from weft.runtime.config import Config

# As Linux has it: what is longer names no file.
PATH_BYTES_MAX = 4096

# Children at once: more than one, so that a slow adapter does not hold up others.
CHILDREN_MAX = 4

# A child takes 0.2 s to start. Another one is started when more than so many tasks wait for each,
# or when one has waited for so long.
WAITING_PER_CHILD = 100
PATIENCE_S = 0.2

# A child that has read so many is replaced: what a library may lose with each is bounded.
JOBS_MAX = 1000

# For one adapter, whatever it does: a gigabyte from a slow disk.
DEADLINE_S = 60.0

# Numeric libraries have no use for threads there, and none are allowed.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

# Between the end of a child's last words and its exit code.
_DEATH_S = 1.0

_MODULE = "weft.actors.adapters.child"
_AGAIN = "it may be damaged; save or copy the adapter again"


class _Task(NamedTuple):
    ticket: int
    source: str
    file: str | None
    asked_at: float  # seconds, monotonic
    is_retry: bool = False


class SandboxedLoader:
    """A loader (see ``loader.Loader``) of local folders, with a few children."""

    def __init__(
        self,
        config: Config,
        base: BaseShapes,
        folder: Path,
        wakes: select.epoll,
    ) -> None:
        """Write files into ``folder``, which is made: ``{ticket}.partial``.

        Raises ``ConfigError`` if the base cannot be split as the configuration says.
        """
        base.shards(config.tensor_parallel_size)
        folder.mkdir(mode=0o700, exist_ok=True, parents=True)
        setup = Setup(
            base,
            config.model,
            config.max_lora_rank,
            config.whole_modules_bytes_max,
            config.tensor_parallel_size,
        )
        self._folder = folder
        self._wakes = wakes
        self._children = Children[_Task](_MODULE, setup, wakes, _ENVIRONMENT)
        self._waiting: deque[_Task] = deque()
        self._done: list[Loaded] = []
        self._tickets = 0
        self.deaths = 0  # of children that had not been told to end

    def start(self, source: str, *, with_file: bool) -> int:
        """Queue a folder."""
        self._tickets += 1
        ticket, now = self._tickets, time.monotonic()
        file = str(self._folder / f"{ticket}.partial") if with_file else None
        if _is_path(source):
            self._waiting.append(_Task(ticket, source, file, now))
            self._distribute(now)
        else:
            self._done.append(Loaded(ticket, BadAdapter(f"{shown(source)} is no path; mend it")))
        return ticket

    def finished(self) -> list[Loaded]:
        """Hear the children, end those that are late, and give the others something to do."""
        now = time.monotonic()
        for child, packet in self._children.heard():
            self._hear(child, packet)
        for child in self._children.late(now):
            self._refuse(
                self._children.bury(child),
                f"reading it took more than {DEADLINE_S:g} seconds, and was given up; is "
                f"the disk there, and the adapter one?",
            )
        self._distribute(now)
        done, self._done = self._done, []
        return done

    def wait(self) -> None:
        """Wait for a child's word, or for the time at which something is due."""
        if self._done:
            return
        times = self._children.deadlines
        times += [task.asked_at + PATIENCE_S for task in list(self._waiting)[:1]]
        assert times, "nothing is under way"
        self._wakes.poll(max(0.0, min(times) - time.monotonic()) + 0.001)

    def cancel(self, ticket: int) -> bool:
        """Give up a folder that no child has begun with."""
        for task in self._waiting:
            if task.ticket == ticket:
                self._waiting.remove(task)
                self._done.append(Loaded(ticket, GivenUp()))
                return True
        return False

    def counters(self) -> dict[str, float]:
        """Return nothing: the store counts what is read."""
        return {}

    @property
    def is_busy(self) -> bool:
        """Whether ``wait`` has something to wait for."""
        return bool(self._done or self._waiting or self._children.tasks)

    def close(self) -> None:
        """Kill the children and remove what they were writing."""
        for child in self._children:
            task = self._children.bury(child)
            if task is not None:
                _remove(task.file)
        self._waiting.clear()

    @property
    def children(self) -> int:
        """Processes at present."""
        return len(self._children)

    def check(self) -> None:
        """Assert that no ticket is twice, and that there are no more children than there may be."""
        tickets = [task.ticket for task in self._waiting]
        tickets += [task.ticket for task in self._children.tasks]
        tickets += [loaded.ticket for loaded in self._done]
        assert len(set(tickets)) == len(tickets), f"a ticket twice in {tickets}"
        assert len(self._children) <= CHILDREN_MAX

    def _distribute(self, now: float) -> None:
        """Give idle children something to do, and let one more come if too much waits."""
        for child in self._children:
            if self._waiting and child.task is None:
                self._begin(child, now)
        if self._waiting and len(self._children) < CHILDREN_MAX:
            first = self._waiting[0]
            if (
                len(self._waiting) > WAITING_PER_CHILD * len(self._children)
                or now >= first.asked_at + PATIENCE_S
                or first.is_retry
            ):
                self._begin(self._children.start(), now)

    def _begin(self, child: Child[_Task], now: float) -> None:
        task = self._waiting.popleft()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            descriptors = [] if task.file is None else [os.open(task.file, flags, 0o600)]
        except OSError as error:
            self._refuse(task, f"{task.file} cannot be written: {error.strerror}; make room there")
            return
        child.begin(task, Job(task.source), now + DEADLINE_S, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    def _hear(self, child: Child[_Task], packet: bytes) -> None:
        """Take in what a child says."""
        answer = _answer(packet)
        if child.task is None or answer is None:
            self._mourn(child, is_dead=not packet)
            return
        task, child.task = child.task, None
        if isinstance(answer, Refusal):
            self._refuse(task, answer.reason)
        else:
            self._done.append(Loaded(task.ticket, Content(answer, task.file, task.source)))
        if child.tasks >= JOBS_MAX:
            self._children.bury(child)

    def _mourn(self, child: Child[_Task], *, is_dead: bool) -> None:
        """Bury a child that has broken, and have its task refused.

        Unless the child had read others before: it may have broken on what they left behind.
        """
        self.deaths += 1
        is_first = child.tasks == 1
        code = child.end(wait_s=_DEATH_S if is_dead else 0.0)
        task = self._children.bury(child)
        if task is None:
            return
        if is_first or task.is_retry:
            self._refuse(task, _cause(code, is_dead=is_dead))
            return
        _remove(task.file)
        self._waiting.appendleft(task._replace(is_retry=True))

    def _refuse(self, task: _Task | None, reason: str) -> None:
        assert task is not None
        _remove(task.file)
        self._done.append(Loaded(task.ticket, BadAdapter(reason[:REASON_CHARACTERS_MAX])))


def _answer(packet: bytes) -> Answer | None:
    """Decode what a child says; None: it is nothing that one should say."""
    try:
        answer: Answer = msgspec.msgpack.decode(packet, type=Answer)
        if isinstance(answer, Facts) and answer.defaults is not None:
            defaults.check(answer.defaults)
    except (msgspec.DecodeError, UnicodeDecodeError, BadAdapter):
        return None
    return answer


def _cause(code: int, *, is_dead: bool) -> str:
    """Say how a child ended."""
    if not is_dead:
        return f"the process that read it broke; {_AGAIN}"
    if code == EXIT_MEMORY:
        return f"reading it takes more memory than any adapter should need; {_AGAIN}"
    if code == -signal.SIGXCPU:
        return f"reading it takes more computing than any adapter should need; {_AGAIN}"
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    return f"the process that read it {how}; {_AGAIN}"


def _is_path(source: str) -> bool:
    try:
        return 0 < len(source.encode()) <= PATH_BYTES_MAX and "\0" not in source
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _remove(file: str | None) -> None:
    if file is not None:
        Path(file).unlink(missing_ok=True)
