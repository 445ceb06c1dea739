"""Child processes that do one task after another for an actor, which does not wait for them."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import msgspec

# Larger than any honest one: what an adapter's folder says has at most 128 KiB. Linux sends packets
# of up to 208 KiB, unless it was told otherwise.
PACKET_BYTES_MAX = 144 * 1024

Task = TypeVar("Task")


class Child(Generic[Task]):
    """A process, and the task that it is at.

    Its standard input is a socket of packets: first what it needs to know, then a job for each
    answer.
    """

    def __init__(self, module: str, setup: msgspec.Struct, environment: Mapping[str, str]) -> None:
        """Start ``python -m module PARENT``, with additions to the environment."""
        self.task: Task | None = None
        self.deadline = 0.0  # seconds, monotonic
        self.tasks = 0  # in its life
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # The kernel kills it when the thread that starts it ends.
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(os.getpid())],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={**os.environ, **environment},
            )
        self.socket.setblocking(False)
        self.descriptor = self.socket.fileno()
        self.socket.send(msgspec.msgpack.encode(setup))

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def begin(
        self, task: Task, job: msgspec.Struct, deadline: float, descriptors: Sequence[int] = ()
    ) -> None:
        """Give it a task, and open files for it."""
        self.task, self.deadline = task, deadline
        self.tasks += 1
        # That it has died is heard where its answer would be.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self.socket, [msgspec.msgpack.encode(job)], descriptors)

    def hear(self) -> bytes:
        """Return what it says, nothing if it is dead. Raises ``BlockingIOError``."""
        try:
            return self.socket.recv(PACKET_BYTES_MAX)
        except ConnectionResetError:
            return b""

    def end(self, *, wait_s: float = 0.0) -> int:
        """Make sure that it is gone, and return its exit code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_s)
        self._process.kill()
        self.socket.close()
        code: int = self._process.wait()
        return code


class Children(Generic[Task]):
    """Processes of one kind. The epoll object is readable when one of them says something."""

    def __init__(
        self,
        module: str,
        setup: msgspec.Struct,
        wakes: select.epoll,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start none yet. Others may have descriptors in ``wakes`` as well."""
        self._module = module
        self._setup = setup
        self._wakes = wakes
        self._environment = environment or {}
        self._children: dict[int, Child[Task]] = {}  # by file descriptor

    def __len__(self) -> int:
        return len(self._children)

    def __iter__(self) -> Iterator[Child[Task]]:
        """Every child, the oldest first; it may be buried meanwhile."""
        return iter(list(self._children.values()))

    @property
    def tasks(self) -> list[Task]:
        """What they are at."""
        return [child.task for child in self if child.task is not None]

    @property
    def deadlines(self) -> list[float]:
        """Until when, in seconds, those that are at something may take: monotonic."""
        return [child.deadline for child in self if child.task is not None]

    def start(self) -> Child[Task]:
        """Let one more come."""
        child = Child[Task](self._module, self._setup, self._environment)
        self._children[child.descriptor] = child
        self._wakes.register(child.descriptor, select.EPOLLIN)
        return child

    def heard(self) -> Iterator[tuple[Child[Task], bytes]]:
        """Yield who has said something, and what: nothing, if it is dead."""
        for descriptor, _ in self._wakes.poll(0):
            if descriptor in self._children:
                child = self._children[descriptor]
                try:
                    packet = child.hear()
                except BlockingIOError:
                    continue
                yield child, packet

    def late(self, now: float) -> list[Child[Task]]:
        """Return those that are at a task whose time is over."""
        return [child for child in self if child.task is not None and now >= child.deadline]

    def bury(self, child: Child[Task]) -> Task | None:
        """End a child and forget it; return the task that it leaves."""
        del self._children[child.descriptor]
        child.end()
        return child.task
