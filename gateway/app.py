"""The HTTP application: routes in front of one client of the ingress protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weft.gateway import chat, completions, errors, keys, models, operations
from weft.runtime.client import AsyncClient
from weft.runtime.config import Config

# Text for the largest context, several times over; below what a frame takes.
BODY_BYTES_MAX = 16 * 1024 * 1024


def create(config: Config, run_dir: Path) -> FastAPI:
    """Return the application; it connects to weft when it is started."""

    @asynccontextmanager
    async def connected(app: FastAPI) -> AsyncIterator[None]:
        async with await AsyncClient.connect(run_dir, name="gateway") as client:
            app.state.client = client
            yield

    app = FastAPI(title="weft", lifespan=connected)
    app.state.config = config
    for part in (chat, completions, models, operations):
        app.include_router(part.router)
    errors.install(app)
    app.add_middleware(_BodyLimit)
    app.add_middleware(keys.ApiKeys, tenant_of_key=config.tenant_of_key)
    return app


class _BodyLimit:
    """Refuses bodies that are too large, before they are held in memory."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > BODY_BYTES_MAX:
                text = f"the body is larger than {BODY_BYTES_MAX} bytes; send less"
                raise HTTPException(413, text)
            return message

        await self._app(scope, counted, send)
