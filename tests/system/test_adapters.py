"""Adapters that come and go over HTTP and ZeroMQ, in the bodies of every client."""

import shutil
import threading

import httpx
import openai
import pytest

from tests.system.runs import ROOT, TIMEOUT_S
from weft.runtime.client import Client, Refused

pytestmark = pytest.mark.system

DEMO = ROOT / "configs/demo/adapters"
MATH = [{"role": "user", "content": "What is 57 plus 68?"}]
ANSWER = "57 + 68. Ones: 7 + 8 = 15, write 5, carry 1. Tens: 5 + 6 + 1 = 12. Answer: 125"


@pytest.fixture
def shelf(place):
    """Copies of the demonstration's adapters, in a folder that requests may name."""
    return shutil.copytree(DEMO, place / "shelf")


@pytest.fixture
def server(serve, shelf):
    return serve(adapter_roots=f"[{shelf}]")


@pytest.fixture
def web(server):
    with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client:
        yield client


def ask(web, model):
    body = {"model": model, "messages": MATH, "temperature": 0}
    response = web.post("/v1/chat/completions", json=body)
    if response.status_code != 200:
        return response.status_code, response.json()["error"]["code"]
    return response.json()["choices"][0]["message"]["content"]


def test_the_resource_loads_replaces_pins_and_unloads(server, web, shelf):
    loaded = web.post("/v1/adapters", json={"name": "sums", "source": str(shelf / "math")}).json()
    assert (loaded["outcome"], loaded["name"], loaded["tier"]) == ("loaded", "sums", "host")
    assert ask(web, "sums") == ANSWER
    shown = web.get("/v1/adapters/sums").json()
    assert (shown["tier"], shown["requests"], shown["requests_total"]) == ("device", 0, 1)
    again = web.put("/v1/adapters/sums", json={"source": str(shelf / "math")}).json()
    assert (again["outcome"], again["version"]) == ("already_loaded", loaded["version"])
    other = {"name": "sums", "source": str(shelf / "sql")}
    taken = web.post("/v1/adapters", json=other)
    assert (taken.status_code, taken.json()["error"]["code"]) == (400, "name_taken")
    replaced = web.post("/v1/adapters", json={**other, "replace": True, "pinned": True}).json()
    assert (replaced["outcome"], replaced["pinned"]) == ("replaced", True)
    assert replaced["version"] > loaded["version"]
    assert ask(web, "sums") == ask(web, "sql") != ANSWER
    assert web.post("/v1/adapters/sums/pin", json={"pinned": False}).json()["pinned"] is False
    assert web.post("/v1/adapters/sums/prefetch").json()["outcome"] == "prefetched"
    assert web.delete("/v1/adapters/sums").json() == {"name": "sums", "outcome": "unloaded"}
    assert ask(web, "sums") == (404, "model_not_found")
    assert web.delete("/v1/adapters/sums").status_code == 404
    assert ask(web, "math") == ANSWER  # the same content under another name
    server.assert_all_is_back()


def test_the_bodies_of_vllm_are_understood(web, shelf):
    body = {"lora_name": "sums", "lora_path": str(shelf / "math")}
    response = web.post("/v1/load_lora_adapter", json=body)
    assert (response.status_code, response.text) == (
        200, "Success: LoRA adapter 'sums' added successfully.",
    )  # fmt: skip
    assert ask(web, "sums") == ANSWER
    other = {"lora_name": "sums", "lora_path": str(shelf / "sql")}
    assert web.post("/v1/load_lora_adapter", json=other).status_code == 400
    assert web.post("/v1/load_lora_adapter", json={**other, "load_inplace": True}).is_success
    assert ask(web, "sums") != ANSWER
    gone = {"lora_name": "sums", "lora_int_id": 7}
    assert "removed" in web.post("/v1/unload_lora_adapter", json=gone).text
    assert web.post("/v1/unload_lora_adapter", json=gone).status_code == 404


def test_the_bodies_of_sglang_are_understood(web, shelf):
    body = {"lora_name": "sums", "lora_path": str(shelf / "math"), "pinned": True}
    said = web.post("/load_lora_adapter", json=body).json()
    assert (said["success"], said["error_message"]) == (True, None)
    assert said["loaded_adapters"]["sums"] == str(shelf / "math")
    assert web.get("/v1/adapters/sums").json()["pinned"] is True
    said = web.post("/unload_lora_adapter", json={"lora_name": "sums"}).json()
    assert said["success"]
    assert "sums" not in said["loaded_adapters"]
    failed = web.post("/unload_lora_adapter", json={"lora_name": "sums"})
    assert (failed.status_code, failed.json()["success"]) == (400, False)
    assert "no adapter is named 'sums'" in failed.json()["error_message"]


def test_openai_python_retrieves_and_deletes_a_model(server, web, shelf):
    web.put("/v1/adapters/sums", json={"source": str(shelf / "math")})
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        assert client.models.retrieve("sums").id == "sums"
        deleted = client.models.delete("sums")
        assert (deleted.id, deleted.deleted) == ("sums", True)
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("sums")
        with pytest.raises(openai.NotFoundError):
            client.models.delete("sums")


def test_what_cannot_be_used_is_refused_and_leaves_nothing(web, shelf, place):
    (shelf / "math" / "adapter_config.json").write_text("{}")
    outside = shutil.copytree(DEMO / "sql", place / "elsewhere")
    (shelf / "link").symlink_to(outside)
    before = web.get("/v1/adapters").json()
    for source, words in (
        (shelf / "math", "adapter_config.json"),
        (shelf / "nothing", "check the path"),
        (outside, "adapter_roots"),
        (shelf / "link", "adapter_roots"),
        (shelf / ".." / "elsewhere", "adapter_roots"),
    ):
        response = web.put("/v1/adapters/new", json={"source": str(source)})
        assert response.status_code == 400
        assert words in response.json()["error"]["message"]
    assert web.get("/v1/adapters").json() == before
    good = str(shelf / "sql")
    for body in (
        {"name": "weft-demo", "source": good},
        {"name": "", "source": good},
        {"name": "n"},
    ):
        assert web.post("/v1/adapters", json=body).status_code == 400


def test_a_stream_that_has_begun_keeps_its_adapter(server, web, shelf):
    """Over ZeroMQ, with a second client that unloads in the middle of an answer."""
    web.put("/v1/adapters/sums", json={"source": str(shelf / "math")})
    with Client(server.run_dir) as client:
        text = client.chat(MATH, model="sums", temperature=0)
        told = [next(text)]
        unload = threading.Thread(target=web.delete, args=("/v1/adapters/sums",))
        unload.start()
        told += text
        unload.join()
        assert "".join(told) == ANSWER
        with pytest.raises(Refused, match="no model or adapter is named 'sums'"):
            list(client.chat(MATH, model="sums"))
        assert "sums" not in {adapter.name for adapter in client.adapters()}
    server.assert_all_is_back()


def test_two_clients_at_once_agree(server, web, shelf):
    """Both load and unload one name, again and again; each answer is one that can be true."""
    outcomes = []

    def work(source):
        with Client(server.run_dir) as client:
            for turn in range(20):
                try:
                    if turn % 3 == 2:
                        outcomes.append(client.unload_adapter("both").outcome)
                    else:
                        said = client.load_adapter("both", str(shelf / source), replace=True)
                        outcomes.append(said.outcome)
                        assert [adapter.name for adapter in said.adapters] in ([], ["both"])
                except Refused as refused:
                    outcomes.append(refused.code)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("math", "sql")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert len(outcomes) == 40
    known = {"loaded", "replaced", "already_loaded", "unloaded", "model_not_found"}
    assert {"loaded", "unloaded"} <= set(outcomes) <= known
    listed = {model["id"] for model in web.get("/v1/models").json()["data"]}
    known = {adapter["name"] for adapter in web.get("/v1/adapters").json()["data"]}
    assert ("both" in listed) == ("both" in known)
    server.assert_all_is_back()
