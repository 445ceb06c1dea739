"""Errors in OpenAI's nested form, whatever went wrong."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from weft.gateway.bodies import describe
from weft.runtime.client import Disconnected, Failed, Refused

# How long a client should wait for a weft that has lost its engine: it takes so long to start one.
RESTART_RETRY_S = 5.0

_INVALID = "invalid_request_error"

# The code of a refusal to HTTP status, OpenAI's type and OpenAI's code, where they differ from
# 400 and the code itself.
_REFUSALS = {
    "model_not_found": (404, _INVALID, "model_not_found"),
    "adapter_refused": (404, _INVALID, "adapter_refused"),
    "bad_adapter": (400, _INVALID, "bad_adapter"),
    "name_taken": (400, _INVALID, "name_taken"),
    "queue_full": (429, "rate_limit_exceeded", "rate_limit_exceeded"),
    "rate_limit_exceeded": (429, "rate_limit_exceeded", "rate_limit_exceeded"),
    "source_unavailable": (503, "server_error", "source_unavailable"),
    "draining": (503, "server_error", "service_unavailable"),
}

# What the framework says of a body that its decoder does not even begin to understand.
_UNREADABLE = (
    "the body cannot be read as JSON; send UTF-8 that is not compressed, not nested hundreds deep "
    "and without numbers of thousands of digits"
)

_log = logging.getLogger(__name__)


def body(
    message: str, kind: str = _INVALID, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """Return an error's JSON."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def of_exception(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return status, JSON and headers of what ended a request."""
    match error:
        case Refused(code=code):
            status, kind, shown = _REFUSALS.get(code, (400, _INVALID, code))
            json = body(error.message, kind, shown, error.param)
            return status, json, _retry_headers(error.retry_after_s)
        case Disconnected():
            return unavailable(f"{error}; try again later")
        case Failed():
            return 500, body(str(error), "server_error", "engine_error"), {}
    raise error


def in_words_of(refused: Refused, words: Mapping[str, str]) -> Refused:
    """Return a refusal that names the field at fault as the request did: weft's name to its own."""
    own = words.get(refused.param or "")
    if own is None:
        return refused
    message = re.sub(f"^{refused.param}: ", f"{own}: ", refused.message)
    return Refused(refused.code, message, own, refused.retry_after_s)


def unavailable(text: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return status, JSON and headers while weft, or a part of it, is not there."""
    json = body(text, "server_error", "service_unavailable")
    return 503, json, _retry_headers(RESTART_RETRY_S)


def respond(status: int, json: Mapping[str, Any], headers: Mapping[str, str]) -> JSONResponse:
    """Return an error as a response."""
    return JSONResponse(json, status, dict(headers))


def install(app: FastAPI) -> None:
    """Have every error of the app's routes leave in this form."""

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, error: RequestValidationError) -> JSONResponse:
        content_type = request.headers.get("content-type", "")
        if "json" not in content_type:
            given = repr(content_type[:64]) if content_type else "missing"
            text = f"the content type is {given}; send application/json"
            return respond(415, body(text), {})
        message, param = describe(error.errors()[0])
        return respond(400, body(message, code="invalid_value", param=param), {})

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> JSONResponse:
        text, code = str(error.detail), None
        if error.status_code == 400:
            text, code = _UNREADABLE, "invalid_value"
        elif error.status_code == 404:
            text = f"there is no {request.url.path}; /docs lists what there is"
        elif error.status_code == 405:
            text = f"{request.url.path} does not take {request.method}"
        return respond(error.status_code, body(text, code=code), error.headers or {})

    @app.exception_handler(Refused)
    @app.exception_handler(Disconnected)
    @app.exception_handler(Failed)
    async def refuse_request(request: Request, error: Exception) -> JSONResponse:
        return respond(*of_exception(error))

    @app.exception_handler(Exception)
    async def confess(request: Request, error: Exception) -> JSONResponse:
        text = "weft made a mistake; its log says more"
        return respond(500, body(text, "server_error", "internal_error"), {})


def _retry_headers(seconds: float | None) -> dict[str, str]:
    if seconds is None:
        return {}
    return {
        "retry-after": str(math.ceil(seconds)),
        "retry-after-ms": str(math.ceil(seconds * 1000)),
    }
