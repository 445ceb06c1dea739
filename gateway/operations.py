"""What operators ask: is it alive, is it ready, what does it do, is its state sound?"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from weft.gateway import errors, metrics
from weft.gateway.responses import Json
from weft.runtime.client import Disconnected

# A weft that is ready answers in milliseconds, whatever its load.
READY_TIMEOUT_S = 5.0

router = APIRouter()


@router.get("/health", response_model=None)
async def health(request: Request) -> Response:
    """Say 200 while the processes behind the gateway are there."""
    failure = request.app.state.client.failure
    if failure is not None:
        return errors.respond(*errors.of_exception(failure))
    return JSONResponse({"status": "ok"})


@router.get("/ready", response_model=None)
async def ready(request: Request) -> Response:
    """Say 200 when a request sent now would be computed, 503 when it would be refused, or wait.

    ``degraded`` says why fewer replicas than usual would compute it, if so.
    """
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            served = await request.app.state.client.served()
    except TimeoutError:
        raise Disconnected(f"weft has not answered in {READY_TIMEOUT_S:.0f} s") from None
    if served.away is not None:
        return errors.respond(*errors.unavailable(served.away))
    told = {"status": "ready", "models": len(served.models)}
    return JSONResponse(told | ({"degraded": served.degraded} if served.degraded else {}))


@router.get("/metrics", response_model=None)
async def show_metrics(request: Request) -> Response:
    """Return Prometheus' text: every actor's counters, and those of each adapter and tenant."""
    report = await request.app.state.client.inspect()
    return Response(metrics.text(report), media_type=CONTENT_TYPE_LATEST)


@router.get("/debug/state")
async def state(request: Request) -> Json:
    """Have every actor check its invariants, and return what each one holds."""
    report = await request.app.state.client.inspect()
    return {"sections": report.sections, "adapters": report.adapters, "tenants": report.tenants}
