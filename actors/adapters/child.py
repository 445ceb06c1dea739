"""The process that reads adapters: ``python -m weft.actors.adapters.child PARENT``.

Standard input is a socket of packets: first ``Setup``, then a ``Job`` for each answer. A job's file
to write comes with it, open; the process itself can open none. If it breaks on an adapter, its
parent says so of that adapter and starts another.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from typing import BinaryIO

import msgspec
import numpy as np

from weft.actors import confine
from weft.actors.adapters import defaults
from weft.actors.adapters.base import BaseShapes
from weft.actors.adapters.base_text import BaseText
from weft.actors.adapters.errors import BadAdapter
from weft.actors.adapters.files import FileError, LocalFiles
from weft.actors.adapters.loader import REASON_CHARACTERS_MAX, Facts
from weft.actors.adapters.reading import read
from weft.actors.adapters.safetensors import HEADER_BYTES_MAX
from weft.actors.children import PACKET_BYTES_MAX

# The exit code that says that memory did not suffice.
EXIT_MEMORY = 3

# Beside the adapter itself: what is made of a header and a configuration of the largest size takes
# up to 200 MiB, what a regular expression is compiled to a few.
WORKING_MEMORY_BYTES = 512 * 1024 * 1024

# The file that is read, a copy of its largest tensor while it is checked for finite values, and the
# rows that are kept of its whole matrices.
_COPIES_MAX = 3

# The socket, the file to write, one to read, and some for what Python opens.
_FILES_MAX = 24

# A gigabyte is read, checked and hashed in about two seconds.
PROCESSOR_TIME_S = 60


class Setup(msgspec.Struct, frozen=True):
    """Parent to child, once: what adapters are checked against."""

    base: BaseShapes
    model: str  # its folder
    rank_max: int
    whole_bytes_max: int
    tensor_parallel_size: int


class Job(msgspec.Struct, frozen=True):
    """Parent to child: read this folder; if a file comes with it, write the adapter there."""

    folder: str


class Refusal(msgspec.Struct, frozen=True, tag="refusal", forbid_unknown_fields=True):
    """Child to parent, instead of ``Facts``: why the adapter cannot be used."""

    reason: str


Answer = Facts | Refusal


def main() -> None:
    """Answer jobs until the socket is closed."""
    confine.die_with(int(sys.argv[1]))
    jobs = socket.socket(fileno=os.dup(0))
    setup = msgspec.msgpack.decode(jobs.recv(PACKET_BYTES_MAX), type=Setup)
    np.isfinite(np.zeros(1, "<f2")).all()  # whatever is loaded at first use is loaded now
    base_text = BaseText(setup.model)
    bytes_max = setup.base.adapter_bytes_max(setup.rank_max, setup.whole_bytes_max)
    confine.confine(
        memory_bytes=WORKING_MEMORY_BYTES + _COPIES_MAX * bytes_max,
        file_bytes=bytes_max + HEADER_BYTES_MAX,
        files=_FILES_MAX,
    )
    while True:
        packet, descriptors, _, _ = socket.recv_fds(jobs, PACKET_BYTES_MAX, 1)
        if not packet:
            return
        confine.allow_processor_time(PROCESSOR_TIME_S)
        job = msgspec.msgpack.decode(packet, type=Job)
        with ExitStack() as opened:
            files = [opened.enter_context(open(descriptor, "wb")) for descriptor in descriptors]
            answer = _answer(job, setup, base_text, files)
        jobs.send(msgspec.msgpack.encode(answer))


def _answer(job: Job, setup: Setup, base_text: BaseText, files: Iterable[BinaryIO]) -> Answer:
    try:
        adapter = read(
            LocalFiles(),
            job.folder,
            setup.base,
            rank_max=setup.rank_max,
            whole_bytes_max=setup.whole_bytes_max,
        )
        rows = setup.base.vocab_size + adapter.tokens_added
        said = defaults.read(LocalFiles(), job.folder, base_text, rows=rows)
        parts = adapter.file()
        for file in files:
            for part in parts:
                file.write(part)
            file.flush()
        shards = setup.base.shards(setup.tensor_parallel_size)
        return Facts(
            adapter.digest,
            adapter.rank,
            sum(len(part) for part in parts),
            adapter.granules(setup.base, shards),
            adapter.tokens_added,
            adapter.is_additive,
            list(adapter.invocation_tokens),
            said,
        )
    except (BadAdapter, FileError) as error:
        return Refusal(str(error)[:REASON_CHARACTERS_MAX])
    except OSError as error:
        return Refusal(f"its copy in the run's directory cannot be written: {error.strerror}")
    except MemoryError:
        os._exit(EXIT_MEMORY)


if __name__ == "__main__":
    main()
