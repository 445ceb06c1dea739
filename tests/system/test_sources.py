"""Adapters of a hub, served: configured, loaded in every way, replaced, and after a killed run."""

import signal
import subprocess
import sys
import threading

import httpx
import pytest

from tests.actors.adapters.sources.fake_hub import LARGE, FakeHub
from tests.system.runs import ROOT, TIMEOUT_S
from weft.runtime.client import Client, Refused

pytestmark = pytest.mark.system

DEMO = ROOT / "configs/demo/adapters"
MATH = [{"role": "user", "content": "What is 57 plus 68?"}]
ANSWER = "57 + 68. Ones: 7 + 8 = 15, write 5, carry 1. Tens: 5 + 6 + 1 = 12. Answer: 125"


@pytest.fixture
def hub(monkeypatch):
    hub = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    yield hub
    hub.close()


def adapter(name):
    return {file: (DEMO / name / file).read_bytes() for file in ("adapter_config.json", LARGE)}


@pytest.fixture
def start(serve, place):
    def start(**options):
        given = {"adapters": "{}", "example_prompts": "{}", "adapter_cache": place / "cache"}
        return serve(**given | options)

    return start


def ask(server, model):
    with Client(server.run_dir) as client:
        return "".join(client.chat(MATH, model=model, temperature=0))


class Gate:
    """Holds a download up until it is open."""

    def __init__(self):
        self.open, self.reached = threading.Event(), threading.Event()

    def __call__(self, handler, content):
        self.reached.set()
        self.open.wait(60)
        handler.wfile.write(content)


def test_a_request_for_what_is_still_being_downloaded_waits_for_it(hub, start):
    commit = hub.push("team/math", adapter("math"))
    gate = Gate()
    hub.faults[LARGE] = [gate]
    server = start(adapters="{sums: team/math}")
    assert gate.reached.wait(60)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(ask(server, "sums")))
    asking.start()
    with Client(server.run_dir) as client:
        assert client.adapters("sums")[0].digest is None
        gate.open.set()
        asking.join(TIMEOUT_S)
        assert answers == [ANSWER]
        assert client.adapters("sums")[0].root == f"hf://team/math@{commit}"
    server.assert_all_is_back()


def test_requests_load_what_is_allowed_by_every_door(hub, start):
    first = hub.push("team/math", adapter("math"))
    hub.push("other/math", adapter("math"))
    server = start(adapter_sources="[hf://team/]")
    with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as web:
        body = {"lora_name": "sums", "lora_path": "team/math"}
        assert web.post("/v1/load_lora_adapter", json=body).status_code == 200
        shown = web.get("/v1/adapters/sums").json()
        assert shown["root"] == f"hf://team/math@{first}"
        assert ask(server, "sums") == ANSWER
        refused = web.put("/v1/adapters/bad", json={"source": "other/math"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "source")
        assert "adapter_sources" in refused.json()["error"]["message"]
        wrong = {"source": "team/math", "digest": "0" * 64}
        refused = web.put("/v1/adapters/bad", json=wrong)
        assert f"{shown['digest']}, not {'0' * 64}" in refused.json()["error"]["message"]
        second = hub.push("team/math", adapter("sql"))
        assert web.post("/v1/load_lora_adapter", json=body).status_code == 400  # without replacing
        body["load_inplace"] = True
        assert web.post("/v1/load_lora_adapter", json=body).status_code == 200
        assert web.get("/v1/adapters/sums").json()["root"] == f"hf://team/math@{second}"
        assert ask(server, "sums") != ANSWER
    command = [sys.executable, "-m", "weft", "adapters", f"--run={server.run_dir}", "load"]
    old = f"hf://team/math@{first}"
    done = subprocess.run(
        [*command, "old", old, "--digest", shown["digest"]],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split(",")[0]) == (0, "old: loaded"), done.stderr
    assert ask(server, "old") == ANSWER
    with Client(server.run_dir) as client, pytest.raises(Refused) as refused:
        client.load_adapter("none", "hf://team/none")
    assert refused.value.code == "bad_adapter"
    assert hub.downloads() == 2
    server.assert_all_is_back()


def test_a_hub_that_is_gone_is_503_and_the_cache_serves_after_a_restart(
    hub, start, place, monkeypatch
):
    hub.push("team/math", adapter("math"))
    server = start(adapters="{sums: team/math}")
    assert ask(server, "sums") == ANSWER
    server.stop()
    server.end()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    server = start(adapters="{sums: team/math}", adapter_sources="[hf://team/]")
    assert ask(server, "sums") == ANSWER
    with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as web:
        said = web.put("/v1/adapters/new", json={"source": "team/sql"})
        assert (said.status_code, said.json()["error"]["code"]) == (503, "source_unavailable")
        assert said.headers["retry-after"]


def test_a_run_that_is_killed_while_it_downloads_leaves_nothing_that_counts(hub, start, place):
    hub.push("team/math", adapter("math"))
    gate = Gate()
    hub.faults[LARGE] = [gate]
    server = start(adapters="{sums: team/math}")
    assert gate.reached.wait(60)
    server.stop(signal.SIGKILL)
    server.end()
    server.assert_nothing_is_left()
    gate.open.set()
    assert list((place / "cache" / "entries").iterdir()) == []
    server = start(adapters="{sums: team/math}")
    assert ask(server, "sums") == ANSWER
    assert list((place / "cache" / "partial").iterdir()) == []
