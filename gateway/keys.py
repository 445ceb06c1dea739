"""API keys: who may ask, and as which tenant."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from weft.gateway import errors

# What probes and metric collectors ask has no key, and tells nothing of what is asked and answered.
OPEN_PATHS = frozenset({"/health", "/ready", "/metrics", "/docs", "/openapi.json", "/redoc"})


class ApiKeys:
    """Answers 401 to whoever has none of the keys, and notes the tenant of who has one.

    Only digests are kept. Every one is compared, and each comparison takes the same time whether
    or not it fails, so the time of an answer says nothing about a key.
    """

    def __init__(self, app: ASGIApp, tenant_of_key: Mapping[str, str]) -> None:
        """Without keys everybody may ask, and nobody is a tenant by this."""
        self._app = app
        self._tenants = [(_digest(key.encode()), tenant) for key, tenant in tenant_of_key.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or let it pass."""
        if self._tenants and scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            name = self._tenant(HTTPConnection(scope).headers.get("authorization"))
            if name is None:
                text = "this server needs one of its API keys; send Authorization: Bearer <key>"
                json = errors.body(text, code="invalid_api_key")
                refusal = errors.respond(401, json, {"www-authenticate": "Bearer"})
                await refusal(scope, receive, send)
                return
            scope.setdefault("state", {})["tenant"] = name
        await self._app(scope, receive, send)

    def _tenant(self, authorization: str | None) -> str | None:
        scheme, _, key = (authorization or "").partition(" ")
        # Headers are bytes, read as Latin-1.
        given = _digest(key.strip().encode("latin-1"))
        found = None
        for known, tenant in self._tenants:
            if hmac.compare_digest(known, given):
                found = tenant
        return found if scheme.lower() == "bearer" else None


def tenant(connection: HTTPConnection) -> str | None:
    """Return the owner of a request's key, None if no keys are asked for."""
    name = connection.scope.get("state", {}).get("tenant")
    return name if isinstance(name, str) else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
