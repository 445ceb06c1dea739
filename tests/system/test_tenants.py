"""Tenants, keys and limits over real processes, as README.md shows them."""

import asyncio
import json
import re
import subprocess

import httpx
import openai
import pytest

from tests.system.runs import ROOT, TIMEOUT_S, Server
from weft.runtime.client import AsyncClient, Refused

pytestmark = pytest.mark.system

README = (ROOT / "README.md").read_text()
SHOWN = re.search(r"### Tenants\n.*?```yaml\n(.*?)```", README, re.DOTALL)[1]
KEYS = "sk-3f9c0b61d2: alice\nsk-of-bob: bob\nsk-of-eve: eve\n"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """The demonstration with the tenants that README.md shows."""
    place = tmp_path_factory.mktemp("t")
    (place / "keys.yaml").write_text(KEYS)
    server = Server(place, lines=SHOWN)
    try:
        server.serve()
        yield server
        server.stop()
        code, _ = server.end()
        assert code == 0, server.log.read_text()
    finally:
        server.popen.kill()
        server.popen.communicate()


def client(server, key):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def test_the_pages_example_without_a_key_is_answered_as_the_page_says(guarded):
    command, answer = re.search(r"\n\$ (curl .*'\{\"prompt\".*)\n(.*)\n```", README).groups()
    done = subprocess.run(
        ["bash", "-c", command.replace("http://127.0.0.1:8000", guarded.url)],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == json.loads(answer)


def test_openais_client_is_told_of_a_wrong_key_and_served_with_a_right_one(guarded):
    with client(guarded, "sk-wrong") as stranger, pytest.raises(openai.AuthenticationError) as why:
        stranger.models.list()
    assert why.value.code == "invalid_api_key"
    with client(guarded, "sk-3f9c0b61d2") as alice:
        assert alice.models.list().data
        answer = alice.completions.create(model="weft-demo", prompt="The", max_tokens=3)
        assert answer.usage.completion_tokens <= 3
    assert "sk-" not in guarded.log.read_text()


def test_beyond_a_limit_it_is_429_with_a_time_to_come_back_and_others_go_on(guarded):
    async def ask(tenant, count):
        key = {"bob": "sk-of-bob", "eve": "sk-of-eve"}[tenant]
        async with openai.AsyncOpenAI(
            base_url=f"{guarded.url}/v1", api_key=key, max_retries=0
        ) as asking:

            async def one():
                return await asking.completions.create(
                    model="weft-demo", prompt="The", max_tokens=40,
                    extra_body={"ignore_eos": True},
                )  # fmt: skip

            return await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)

    async def both():
        return await asyncio.gather(ask("bob", 12), ask("eve", 12))

    bobs, eves = asyncio.run(both())
    refused = [answer for answer in bobs if isinstance(answer, openai.RateLimitError)]
    assert 0 < len(refused) < 12
    for error in refused:
        assert error.code == "rate_limit_exceeded"
        assert int(error.response.headers["retry-after"]) >= 1
        assert "at most 2 may be" in error.message
    for answer in [*eves, *(each for each in bobs if each not in refused)]:
        assert answer.usage.completion_tokens == 40
    headers = {"authorization": "Bearer sk-of-eve"}
    state = httpx.get(f"{guarded.url}/debug/state", headers=headers, timeout=TIMEOUT_S)
    state = state.raise_for_status().json()
    counted = {tenant["tenant"]: tenant for tenant in state["tenants"]}
    assert counted["bob"]["rejected"] == len(refused)
    assert counted["bob"]["requests"] == 12 - len(refused)
    assert (counted["eve"]["requests"], counted["eve"]["output_tokens"]) == (12, 480)
    metrics = httpx.get(f"{guarded.url}/metrics", timeout=TIMEOUT_S).text
    assert f'weft_tenant_rejected_total{{tenant="bob"}} {len(refused)}.0' in metrics
    assert state["sections"]["scheduler"]["requests"] == 0


@pytest.mark.parametrize(("model", "is_refused"), [("math", True), ("sql", False)])
def test_a_tenant_may_not_use_adapters_of_a_higher_rank(guarded, model, is_refused):
    with client(guarded, "sk-of-bob") as bob:
        if not is_refused:  # of rank 16
            bob.completions.create(model=model, prompt="The", max_tokens=1)
            return
        with pytest.raises(openai.BadRequestError, match="yours may have 16 at most"):
            bob.completions.create(model=model, prompt="The", max_tokens=1)


def test_a_client_of_the_sockets_names_its_tenant(guarded):
    async def work():
        async with await AsyncClient.connect(guarded.run_dir) as asking:

            async def one():
                async for _ in asking.generate(
                    prompt="The", tenant="bob", priority=5, max_tokens=40, ignore_eos=True
                ):
                    pass

            return await asyncio.gather(*(one() for _ in range(8)), return_exceptions=True)

    refused = [answer for answer in asyncio.run(work()) if isinstance(answer, Refused)]
    assert 0 < len(refused) <= 6
    assert {(refusal.code, refusal.retry_after_s) for refusal in refused} == {
        ("rate_limit_exceeded", 1.0)
    }
