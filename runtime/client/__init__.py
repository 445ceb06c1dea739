"""Use a running weft from another process, over ZeroMQ.

    from weft.runtime.client import Client

    with Client() as client:
        for text in client.chat([{"role": "user", "content": "12 + 30 = ?"}], model="math"):
            print(text, end="", flush=True)

Depends on pyzmq and msgpack alone. runtime/INGRESS.md describes the protocol for other languages.
"""

from weft.runtime.client.asynchronous import AsyncClient, AsyncStream
from weft.runtime.client.blocking import Client, Stream
from weft.runtime.client.events import (
    Accepted,
    Adapter,
    Asker,
    Changed,
    Disconnected,
    Event,
    Failed,
    Finished,
    Model,
    Models,
    Refused,
    Report,
    Text,
    TokenLogprob,
)
from weft.runtime.runs import NoRun

__all__ = [
    "Accepted",
    "Adapter",
    "Asker",
    "AsyncClient",
    "AsyncStream",
    "Changed",
    "Client",
    "Disconnected",
    "Event",
    "Failed",
    "Finished",
    "Model",
    "Models",
    "NoRun",
    "Refused",
    "Report",
    "Stream",
    "Text",
    "TokenLogprob",
]
