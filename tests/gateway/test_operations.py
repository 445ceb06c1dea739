import asyncio

import httpx
import pytest
from fastapi import FastAPI

from weft.gateway import errors, operations
from weft.runtime.client import Disconnected, Models


class Weft:
    """A client of a weft that has ended, that answers, or is there and never does."""

    def __init__(self, failure=None, answer=None):
        self.failure = failure
        self.answer = answer

    async def served(self):
        if self.failure is not None:
            raise self.failure
        if self.answer is not None:
            return self.answer
        await asyncio.Event().wait()


def ask(weft, path):
    app = FastAPI()
    app.state.client = weft
    app.include_router(operations.router)
    errors.install(app)

    async def get():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://weft") as client:
            return await client.get(path)

    return asyncio.run(get())


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_a_weft_that_has_ended_is_neither_there_nor_ready(path):
    response = ask(Weft(Disconnected("weft has ended")), path)
    assert response.status_code == 503
    assert response.json()["error"]["message"] == "weft has ended; try again later"
    assert response.headers["retry-after"] == "5"


def test_with_fewer_replicas_than_usual_weft_is_ready_and_says_so():
    response = ask(Weft(answer=Models([], None, "1 of 2 replicas")), "/ready")
    assert response.status_code == 200
    assert response.json() == {"status": "ready", "models": 0, "degraded": "1 of 2 replicas"}


def test_while_its_runners_are_away_weft_is_there_but_not_ready():
    away = Weft(answer=Models([], "the runners are away"))
    assert ask(away, "/health").json() == {"status": "ok"}
    response = ask(away, "/ready")
    assert response.status_code == 503
    assert response.json()["error"]["message"] == "the runners are away"
    back = ask(Weft(answer=Models([])), "/ready")
    assert (back.status_code, back.json()) == (200, {"status": "ready", "models": 0})


def test_a_weft_that_does_not_answer_is_there_but_not_ready(monkeypatch):
    monkeypatch.setattr(operations, "READY_TIMEOUT_S", 0.01)
    assert ask(Weft(), "/health").json() == {"status": "ok"}
    response = ask(Weft(), "/ready")
    assert response.status_code == 503
    assert response.json()["error"]["message"] == "weft has not answered in 0 s; try again later"
    assert response.headers["retry-after"] == "5"
