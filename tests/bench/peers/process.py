"""Servers of other projects as child processes, and requests to them."""

import asyncio
import os
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress

import httpx

START_S = 600  # the slowest compiles its model at start


class NotServing(Exception):
    """A server ended, or was not ready in time; the message ends with its last lines."""


def free_port():
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(command, *, ready_url, environment):
    """Run a server and everything that it starts until the block is left."""
    with tempfile.TemporaryFile() as log:
        # Its own session: a server's workers are ended with it.
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            _wait(server, ready_url, log)
            yield
        finally:
            _end(server)


def post_all(url, bodies):
    """Post all bodies at once, and return the answers in order."""

    async def work():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=None, limits=limits) as client:
            answers = await asyncio.gather(*(client.post(url, json=body) for body in bodies))
        for answer in answers:
            if answer.is_error:
                raise NotServing(f"{url} answered {answer.status_code}: {answer.text[:500]}")
        return [answer.json() for answer in answers]

    return asyncio.run(work())


def _wait(server, url, log):
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(url).is_success:
                return
        time.sleep(0.2)
    log.seek(0)
    last = log.read().decode(errors="replace").splitlines()[-30:]
    raise NotServing("\n".join([f"{server.args[0]} is not serving:", *last]))


def _end(server):
    for number, patience_s in ((signal.SIGTERM, 30), (signal.SIGKILL, 30)):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(patience_s)
    server.wait()
