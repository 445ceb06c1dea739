"""The gateway's process: uvicorn, from the launcher's start to its SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from weft.gateway import app
from weft.gateway.http import BoundedHeads
from weft.runtime.config import Config
from weft.runtime.listen import listen

# How long a connection may lie idle. Longer than clients and proxies let theirs lie, which is 4 to
# 90 s: if both gave up at the same time, a request could be sent on a connection that is being
# closed, and its client would never know whether it was heard.
KEEP_ALIVE_S = 120

# After drain_timeout_s, for the last words to those who still wait.
FAREWELL_S = 0.5

_log = logging.getLogger(__name__)


def serve(config: Config, run_dir: Path, on_ready: Callable[[str], None]) -> None:
    """Serve HTTP until SIGTERM, then finish what has begun. ``on_ready`` hears the URL.

    Raises ``ConfigError`` if the address cannot be had.
    """
    listener = listen(config)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    application = app.create(config, run_dir)
    settings = uvicorn.Config(
        application,
        loop="uvloop",
        http=BoundedHeads,
        lifespan="on",
        access_log=False,  # weft's own log tells every request's story
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_S,
        # Whoever does not read, or sends half a request, must not cost the others their own end.
        timeout_graceful_shutdown=math.ceil(config.drain_timeout_s + FAREWELL_S),
    )

    def give_up() -> None:
        _log.warning("drain_timeout_s is over: what is not answered ends with an error")
        application.state.client.close("weft is stopping, and drain_timeout_s is over")

    server = _Server(settings, lambda: on_ready(url), config.drain_timeout_s, give_up)
    server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says when it is ready, and ends without an exit by signal after it was told to end."""

    def __init__(
        self,
        settings: uvicorn.Config,
        on_ready: Callable[[], None],
        drain_timeout_s: float,
        give_up: Callable[[], None],
    ) -> None:
        """``give_up`` has to end what is still under way after ``drain_timeout_s``."""
        super().__init__(settings)
        self._on_ready = on_ready
        self._drain_timeout_s = drain_timeout_s
        self._give_up = give_up

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        giving_up = loop.call_later(self._drain_timeout_s, self._give_up)
        await super().shutdown(sockets)
        giving_up.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield
