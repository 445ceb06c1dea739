"""The process that renders chat templates: ``python -m weft.actors.tokenizer.render_child PARENT``.

Standard input is a socket of packets: first ``Setup``, then ``Written`` for each job, which comes
with an open memory file: the job is read from it, and the answer written over it. What takes too
long or too much memory ends the process; its parent says so of that template, and starts another.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections import OrderedDict

import msgspec
from jinja2 import Template

from weft.actors import chat_templates, confine
from weft.actors.children import PACKET_BYTES_MAX
from weft.actors.tokenizer.rendering import REASON_CHARACTERS_MAX, Job, Text, Unrendered

# What the child says when it has written an answer.
DONE = b"done"

# The exit code that says that memory did not suffice.
EXIT_MEMORY = 3

# Of one chat. Those of a thousand turns take some ten milliseconds.
PROCESSOR_TIME_S = 1.0

# Beside the job and its answer, a few copies of which fit in as well.
WORKING_MEMORY_BYTES = 256 * 1024 * 1024

# The socket, the memory file, and some for what Python opens.
_FILES_MAX = 24

# Compiling takes some milliseconds; a template takes some hundred kilobytes.
_TEMPLATES_MAX = 128


class Setup(msgspec.Struct, frozen=True):
    """Parent to child, once: how long a text may be, and how large a file with a job or answer."""

    characters_max: int
    file_bytes_max: int


class Written(msgspec.Struct, frozen=True):
    """Parent to child: a ``Job`` lies in the memory file, which may be longer than any packet."""


Answer = Text | Unrendered


def main() -> None:
    """Answer jobs until the socket is closed."""
    confine.die_with(int(sys.argv[1]))
    jobs = socket.socket(fileno=os.dup(0))
    setup = msgspec.msgpack.decode(jobs.recv(PACKET_BYTES_MAX), type=Setup)
    # Whatever is loaded at first use is loaded now.
    chat_templates.render(chat_templates.compiled("{{ messages|tojson }}"), [], {})
    confine.confine(
        memory_bytes=WORKING_MEMORY_BYTES + 4 * setup.file_bytes_max,
        file_bytes=setup.file_bytes_max,
        files=_FILES_MAX,
    )
    templates: OrderedDict[str, Template] = OrderedDict()
    while True:
        packet, descriptors, _, _ = socket.recv_fds(jobs, PACKET_BYTES_MAX, 1)
        if not packet:
            return
        with open(descriptors[0], "r+b") as file:
            job = msgspec.msgpack.decode(file.read(), type=Job)
            # The kernel ends the process at the timer's end, whatever it is at.
            signal.setitimer(signal.ITIMER_PROF, PROCESSOR_TIME_S)
            try:
                answer = _answer(job, templates, setup)
                signal.setitimer(signal.ITIMER_PROF, 0)
                file.seek(0)
                file.truncate()
                file.write(msgspec.msgpack.encode(answer))
            except MemoryError:
                os._exit(EXIT_MEMORY)
        jobs.send(DONE)


def _answer(job: Job, templates: OrderedDict[str, Template], setup: Setup) -> Answer:
    try:
        template = templates.get(job.template)
        if template is None:
            template = templates[job.template] = chat_templates.compiled(job.template)
        templates.move_to_end(job.template)
        if len(templates) > _TEMPLATES_MAX:
            templates.popitem(last=False)
        text = chat_templates.render(template, job.chat, job.variables)
        text.encode()  # a template can write half of a surrogate pair
    except chat_templates.BadTemplate as error:
        return Unrendered(_shown(error), is_broken=True)
    except chat_templates.FAILURES as error:
        return Unrendered(_shown(error))
    if len(text) > setup.characters_max:
        return Unrendered(f"it makes more than {setup.characters_max} characters of them")
    return Text(text)


def _shown(error: Exception) -> str:
    return str(error)[:REASON_CHARACTERS_MAX].encode(errors="replace").decode()


if __name__ == "__main__":
    main()
