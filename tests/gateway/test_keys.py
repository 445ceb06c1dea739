import asyncio
import logging

import httpx
import pytest
from fastapi import FastAPI, Request

from weft.gateway import errors, keys

KEYS = {"sk-ann-1": "ann", "sk-ann-2": "ann", "sk-bob": "bob"}


def ask(headers, *, path="/who", tenant_of_key=KEYS):
    app = FastAPI()

    @app.get("/who")
    @app.get("/health")
    async def who(request: Request):
        return {"tenant": keys.tenant(request)}

    errors.install(app)
    app.add_middleware(keys.ApiKeys, tenant_of_key=tenant_of_key)

    async def get():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://weft") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(get())


@pytest.mark.parametrize(
    ("authorization", "tenant"),
    [
        ("Bearer sk-ann-1", "ann"),
        ("Bearer sk-ann-2", "ann"),
        ("bearer  sk-bob ", "bob"),
    ],
)
def test_a_key_says_whose_request_it_is(authorization, tenant):
    response = ask({"authorization": authorization})
    assert (response.status_code, response.json()) == (200, {"tenant": tenant})


@pytest.mark.parametrize(
    "authorization",
    [
        None, "", "Bearer", "Bearer ", "Bearer sk-an", "Bearer sk-ann-1x", "Basic sk-ann-1",
        "sk-ann-1", b"Bearer \xff\xfe",
    ],
    ids=str,
)  # fmt: skip
def test_whoever_has_no_key_is_told_so_in_openais_form(authorization):
    response = ask({} if authorization is None else {"authorization": authorization})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert "Authorization: Bearer" in error["message"]


def test_a_path_that_does_not_exist_says_nothing_without_a_key():
    assert ask({}, path="/nowhere").status_code == 401
    assert ask({"authorization": "Bearer sk-bob"}, path="/nowhere").status_code == 404


def test_probes_need_no_key():
    assert ask({}, path="/health").status_code == 200


def test_without_keys_everybody_may_ask_and_is_nobody():
    for headers in ({}, {"authorization": "Bearer none"}):
        response = ask(headers, tenant_of_key={})
        assert (response.status_code, response.json()) == (200, {"tenant": None})


def test_keys_are_not_kept_and_not_logged(caplog):
    caplog.set_level(logging.DEBUG)
    layer = keys.ApiKeys(FastAPI(), KEYS)
    assert "sk-" not in repr(vars(layer))
    ask({"authorization": "Bearer sk-ann-1"})
    ask({"authorization": "Bearer sk-wrong"})
    assert "sk-" not in caplog.text
