"""Adapters that come and go over HTTP and ZeroMQ, in the bodies of every client."""

import contextlib
import json
import random
import shutil
import subprocess
import sys
import threading
import time

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


def test_the_command_line_shows_and_changes_a_running_weft(server, shelf):
    def run(*arguments):
        command = [sys.executable, "-m", "weft", "adapters", f"--run={server.run_dir}", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        return done.returncode, (done.stdout + done.stderr).strip()

    code, shown = run("load", "sums", str(shelf / "math"), "--pin")
    assert (code, shown.split(",")[0]) == (0, "sums: loaded")
    code, shown = run()
    shown, told = shown.split("\n\n")
    header, *rows = [line.split() for line in shown.splitlines()]
    assert (code, header[:3]) == (0, ["NAME", "VERSION", "DIGEST"])
    [sums] = [row for row in rows if row[0] == "sums"]
    [math] = [row for row in rows if row[0] == "math"]
    assert sums[2] == math[2]  # one content
    assert sums[5:9] == ["host", "yes", "0", "0"]
    assert ", 1 in host memory," in told or ", 2 in host memory," in told
    [only] = json.loads(run("list", "--json", "--match", "su*")[1])
    assert (only["name"], only["tier"], only["hits"]) == ("sums", "host", [0, 0, 0])
    assert run("load", "sums", str(shelf / "sql"))[0] != 0
    assert run("load", "sums", str(shelf / "sql"), "--replace")[1].startswith("sums: replaced")
    assert run("unpin", "sums")[1].startswith("sums: unpinned")
    assert run("prefetch", "sums")[1].startswith("sums: prefetched")
    assert run("unload", "sums") == (0, "sums: unloaded")
    code, said = run("unload", "sums")
    assert code != 0
    assert "weft: error: no adapter is named 'sums'" in said


def test_an_adapter_pinned_to_the_device_is_there_before_anybody_asks(serve, shelf):
    server = serve(adapters_folder=shelf, adapters="{}", example_prompts="{}")
    with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as web:
        wait_for(lambda: web.get("/v1/adapters/math").status_code == 200)
        wait_for(
            lambda: web.post("/v1/adapters/math/pin", json={"tier": "device"}).status_code == 200
        )
        wait_for(lambda: web.get("/v1/adapters/math").json()["tier"] == "device")
        assert ask(web, "math") == ANSWER
        shown = web.get("/v1/adapters/math").json()
        assert (shown["pinned"], shown["pinned_on_device"], shown["hits"]) == (
            True,
            True,
            [1, 0, 0],
        )
        assert web.post("/v1/adapters/math/pin", json={"tier": "disk"}).status_code == 400
        assert web.delete("/v1/adapters/math").status_code == 200
    server.assert_all_is_back()


def test_a_watched_folder_is_found_read_at_first_use_and_dropped(serve, shelf):
    server = serve(adapters_folder=shelf, adapters="{}", example_prompts="{}")
    with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as web:
        wait_for(lambda: web.get("/v1/adapters/math").status_code == 200)
        shown = web.get("/v1/adapters/math").json()
        assert (shown["digest"], shown["tier"]) == (None, "disk")
        assert ask(web, "math") == ANSWER
        assert web.get("/v1/adapters/math").json()["tier"] == "device"
        shutil.copytree(shelf / "math", shelf / "sums")
        wait_for(lambda: ask(web, "sums") == ANSWER)
        shutil.rmtree(shelf / "sums")
        wait_for(lambda: ask(web, "sums") == (404, "model_not_found"))
        assert web.delete("/v1/adapters/math").status_code == 200
        assert ask(web, "math") == (404, "model_not_found")
        assert web.put("/v1/adapters/math", json={"source": "math"}).json()["outcome"] == "loaded"
        assert ask(web, "math") == ANSWER
    server.assert_all_is_back()


# The largest of the adapters just may be half of it, so that not all of them fit.
HOST_MIB = 5


def test_five_hundred_random_operations_leave_what_a_model_says(serve, shelf):
    """One client, whose answers are known; another one, whose requests are always going on."""
    server = serve(
        adapter_roots=f"[{shelf}]", max_loaded_loras=3, max_loras_per_batch=2,
        kv_cache_memory_mib=24, adapter_host_memory_mib=HOST_MIB,
    )  # fmt: skip
    rng = random.Random(7)
    names, contents = ("n0", "n1", "n2", "n3"), ("math", "sql", "function", "emotion")
    means, answers, wrong = {}, {}, []
    is_over = threading.Event()

    def flood():
        with Client(server.run_dir) as client:
            while not is_over.is_set():
                try:
                    list(client.complete("The", model=rng.choice(names), max_tokens=8))
                except Refused as refused:
                    if refused.code != "model_not_found":
                        wrong.append(refused)

    flooding = threading.Thread(target=flood)
    with Client(server.run_dir) as client:
        for name in contents:
            answers[name] = "".join(client.chat(MATH, model=name, temperature=0, max_tokens=8))
        assert len(set(answers.values())) > 1
        flooding.start()
        try:
            for _ in range(500):
                name, content = rng.choice(names), rng.choice(contents)
                expected, found = operate(client, rng, shelf, means, name, content)
                assert found in expected, (name, content, means)
                assert {a.name for a in client.adapters()} == {*contents, *means}
                assert host_bytes(server) <= HOST_MIB * 2**20
                if name in means and rng.random() < 0.3:
                    text = "".join(client.chat(MATH, model=name, temperature=0, max_tokens=8))
                    assert text == answers[means[name]]
        finally:
            is_over.set()
            flooding.join(TIMEOUT_S)
        assert not wrong
        server.assert_all_is_back()
        for name in (*contents, *means):
            client.unload_adapter(name)
        assert client.adapters() == []
    sections = server.state()["sections"]
    assert (
        sections["scheduler"]["adapters_resident"] == sections["scheduler"]["pages_adapters"] == 0
    )
    assert sections["adapters"]["loaded"] == sections["adapters"]["known"] == 0
    assert list((server.run_dir / "adapters").iterdir()) == []


def host_bytes(server):
    """What adapters take in host memory, those that are being written left out."""
    total = 0
    for path in (server.run_dir / "adapters").glob("*.safetensors"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def operate(client, rng, shelf, means, name, content):
    """Do something to a name; return what may come of it and what did."""
    is_known = name in means
    kind = rng.choice(("load", "replace", "unload", "pin", "unpin", "prefetch"))
    try:
        if kind in ("load", "replace"):
            is_same = means.get(name) == content
            changed = client.load_adapter(name, str(shelf / content), replace=kind == "replace")
            means[name] = content
            expected = {"already_loaded" if is_same else "replaced" if is_known else "loaded"}
        elif kind == "unload":
            changed = client.unload_adapter(name)
            del means[name]
            expected = {"unloaded"}
        elif kind == "prefetch":
            changed, expected = client.prefetch_adapter(name), {"prefetched"}
        else:
            on_device = rng.random() < 0.5
            changed = client.pin_adapter(name, pinned=kind == "pin", on_device=on_device)
            expected = {f"{kind}ned"}
    except Refused as refused:
        if not is_known:
            return {"model_not_found"}, refused.code
        return {"name_taken", "queue_full", "invalid_value"}, refused.code
    return expected, changed.outcome


def wait_for(holds):
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


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
    # Or it was unloaded before it was read.
    assert {"loaded", "unloaded"} <= set(outcomes) <= {*known, "cancelled"}
    listed = {model["id"] for model in web.get("/v1/models").json()["data"]}
    known = {adapter["name"] for adapter in web.get("/v1/adapters").json()["data"]}
    assert ("both" in listed) == ("both" in known)
    server.assert_all_is_back()
