"""A child process that does one task after another for the store."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
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
