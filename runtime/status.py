"""What a process tells its launcher, through a pipe: one JSON object a line."""

from __future__ import annotations

import os

import msgspec


class Progress(msgspec.Struct, frozen=True, tag="progress", tag_field="kind"):
    """Loading goes on."""

    what: str
    share: float  # 0 .. 1


class Ready(msgspec.Struct, frozen=True, tag="ready", tag_field="kind"):
    """The process can do its work."""

    url: str | None = None  # where it listens, if that is of interest to a user


class Failed(msgspec.Struct, frozen=True, tag="failed", tag_field="kind"):
    """The process ends. ``is_users`` if the user can mend it: then the message says how."""

    message: str
    is_users: bool


Status = Progress | Ready | Failed

_decode = msgspec.json.Decoder(Status).decode


class StatusPipe:
    """The process's end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def say(self, status: Status) -> None:
        """Write one line."""
        os.write(self._fd, msgspec.json.encode(status) + b"\n")


class StatusReader:
    """The launcher's end: bytes in, statuses out."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Status]:
        """Return the statuses whose lines are complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [_decode(line) for line in lines]
