"""Renders adapters' chat templates in child processes that have given up all they can.

A template that computes for ever, or takes all memory, costs its own request and a second of one
child. From then on it is a suspect: it waits until nobody else does, and never has every child. One
thread does it all, and waits for nothing: the epoll object that it was given becomes readable when
a child has something to say.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections import OrderedDict, deque
from typing import NamedTuple

import msgspec

from weft.actors.children import Child, Children
from weft.actors.tokenizer.prompt import CHARACTERS_PER_TOKEN_MAX
from weft.actors.tokenizer.render_child import (
    DONE,
    EXIT_MEMORY,
    Answer,
    Setup,
    Written,
)
from weft.actors.tokenizer.rendering import REASON_CHARACTERS_MAX, Job, Rendered, Unrendered

# Two, so that one is left to the others when a suspect has one.
CHILDREN_MAX = 2

# A chat takes 0.1 ms. Another child is started when one has waited for so long.
PATIENCE_S = 0.1

# For one chat, should the child not even get to compute: it is killed then, too.
DEADLINE_S = 30.0

# A child that has rendered so many is replaced: what templates may leave behind is bounded.
JOBS_MAX = 10_000

SUSPECTS_MAX = 1024

# What a template may write around a chat of the largest size that is taken.
_TEMPLATE_TEXT_MAX = 64 * 1024

# Between the end of a child's last words and its exit code.
_DEATH_S = 0.1

_MODULE = "weft.actors.tokenizer.render_child"
_MEND = "mend the adapter's template, or remove it"


class _Task(NamedTuple):
    ticket: int  # 0: it was taken back
    job: Job
    asked_at: float  # seconds, monotonic
    is_retry: bool = False
    # Once a child is at it:
    is_suspect: bool = False
    file: int = -1  # descriptor of the memory file with the job, and then the answer


class SandboxedRenderer:
    """A renderer (see ``rendering.Renderer``) with a few children, started when needed."""

    def __init__(self, max_model_len: int, wakes: select.epoll) -> None:
        """``max_model_len`` bounds how long a chat, and what is made of it, may be, in tokens."""
        characters_max = max_model_len * CHARACTERS_PER_TOKEN_MAX + _TEMPLATE_TEXT_MAX
        # A character has up to four bytes; keys and lengths beside each of the messages, too.
        file_bytes_max = 5 * characters_max + 64 * max_model_len + _TEMPLATE_TEXT_MAX
        self._setup = Setup(characters_max, file_bytes_max)
        self._children = Children[_Task](_MODULE, self._setup, wakes)
        self._waiting: deque[_Task] = deque()
        self._suspected: deque[_Task] = deque()  # tasks of suspects, that wait
        self._suspects: OrderedDict[str, None] = OrderedDict()  # templates, the oldest first
        self._done: list[Rendered] = []
        self._tickets = 0
        self.deaths = 0  # of children that had not been told to end

    def start(self, job: Job) -> int:
        """Queue a chat."""
        self._tickets += 1
        now = time.monotonic()
        self._queue(job).append(_Task(self._tickets, job, now))
        self._distribute(now)
        return self._tickets

    def forget(self, ticket: int) -> None:
        """Take a chat back. A child that is at it already finishes."""
        for queue in (self._waiting, self._suspected):
            for task in queue:
                if task.ticket == ticket:
                    queue.remove(task)
                    return
        self._done = [rendered for rendered in self._done if rendered.ticket != ticket]
        for child in self._children:
            if child.task is not None and child.task.ticket == ticket:
                child.task = child.task._replace(ticket=0)

    def finished(self) -> list[Rendered]:
        """Hear the children, end those that are late, and give the others something to do."""
        if not self._children:
            return []
        now = time.monotonic()
        for child, packet in self._children.heard():
            self._hear(child, packet)
        for child in self._children.late(now):
            task = self._children.bury(child)
            self._give_up(task, f"it takes more than {DEADLINE_S:g} seconds")
        self._distribute(now)
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Kill the children."""
        for child in self._children:
            task = self._children.bury(child)
            if task is not None:
                os.close(task.file)

    @property
    def pids(self) -> list[int]:
        """Processes at present."""
        return [child.pid for child in self._children]

    def check(self) -> None:
        """Assert that there are no more children than there may be, and one for suspects."""
        assert len(self._children) <= CHILDREN_MAX
        assert sum(map(_is_suspected, self._children)) <= 1
        assert len(self._suspects) <= SUSPECTS_MAX

    def _queue(self, job: Job) -> deque[_Task]:
        return self._suspected if job.template in self._suspects else self._waiting

    def _distribute(self, now: float) -> None:
        """Give idle children something to do, and let one more come if that takes too long."""
        while (queue := self._next_queue()) is not None:
            idle = next((child for child in self._children if child.task is None), None)
            if idle is None:
                if not self._may_start(queue[0], now):
                    return
                idle = self._children.start()
            task = queue.popleft()
            task = task._replace(is_suspect=queue is self._suspected, file=_written(task.job))
            idle.begin(task, Written(), now + DEADLINE_S, [task.file])

    def _next_queue(self) -> deque[_Task] | None:
        if self._waiting:
            return self._waiting
        has_suspect = any(map(_is_suspected, self._children))
        return self._suspected if self._suspected and not has_suspect else None

    def _may_start(self, task: _Task, now: float) -> bool:
        """Whether one more child may be started for a task that finds none idle."""
        if len(self._children) >= CHILDREN_MAX:
            return False
        others = [child for child in self._children if not _is_suspected(child)]
        return not others or task.is_retry or now >= task.asked_at + PATIENCE_S

    def _hear(self, child: Child[_Task], packet: bytes) -> None:
        task = child.task
        answer = None if task is None or packet != DONE else self._read(task.file)
        if task is None or answer is None:
            self._mourn(child, is_dead=not packet)
            return
        child.task = None
        self._answer(task, answer)
        if child.tasks >= JOBS_MAX:
            self._children.bury(child)

    def _read(self, file: int) -> Answer | None:
        """Return what a child has written; None: it is nothing that one should write."""
        raw = os.pread(file, self._setup.file_bytes_max, 0)
        try:
            answer: Answer = msgspec.msgpack.decode(raw, type=Answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        if isinstance(answer, Unrendered):
            return msgspec.structs.replace(answer, reason=answer.reason[:REASON_CHARACTERS_MAX])
        return answer if len(answer.text) <= self._setup.characters_max else None

    def _mourn(self, child: Child[_Task], *, is_dead: bool) -> None:
        """Bury a child that has broken, and blame its template.

        Unless the child had rendered others before: it may have broken on what they left behind.
        That a chat took too much computing is its template's doing in any case.
        """
        self.deaths += 1
        is_first = child.tasks == 1
        code = child.end(wait_s=_DEATH_S if is_dead else 0.0)
        task = self._children.bury(child)
        if task is None:
            return
        if code == -signal.SIGPROF:
            self._give_up(task, "it takes too much computing")
        elif is_first or task.is_retry:
            memory = "it takes too much memory"
            self._give_up(task, memory if code == EXIT_MEMORY else "its process broke")
        else:
            os.close(task.file)
            self._queue(task.job).appendleft(task._replace(is_retry=True))

    def _give_up(self, task: _Task | None, reason: str) -> None:
        assert task is not None
        self._suspects[task.job.template] = None
        self._suspects.move_to_end(task.job.template)
        if len(self._suspects) > SUSPECTS_MAX:
            self._suspects.popitem(last=False)
        self._suspected.extend(t for t in self._waiting if t.job.template in self._suspects)
        self._waiting = deque(t for t in self._waiting if t.job.template not in self._suspects)
        self._answer(task, Unrendered(f"{reason}; {_MEND}", is_broken=True))

    def _answer(self, task: _Task, answer: Answer) -> None:
        os.close(task.file)
        if task.ticket:
            self._done.append(Rendered(task.ticket, answer))


def _is_suspected(child: Child[_Task]) -> bool:
    return child.task is not None and child.task.is_suspect


def _written(job: Job) -> int:
    """Return the descriptor of a memory file that holds a job."""
    descriptor = os.memfd_create("weft-chat", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(msgspec.msgpack.encode(job))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
