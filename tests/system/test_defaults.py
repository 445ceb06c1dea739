"""Adapters whose folders say how to talk to them, over HTTP and in real processes."""

import json
import shutil
import threading

import httpx
import pytest

from tests.system.runs import ROOT, TIMEOUT_S

pytestmark = pytest.mark.system

DEMO = ROOT / "configs/demo"
QUESTION = "What is 57 plus 68?"
ANSWER = "57 + 68. Ones: 7 + 8 = 15, write 5, carry 1. Tens: 5 + 6 + 1 = 12. Answer: 125"
# The demonstration's own template, with whatever is asked replaced by a question of its own.
ASKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if m.role != 'user' else 'What is 57 plus 68?' }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
GREEDY = {"temperature": 0}


@pytest.fixture
def shelf(place):
    return shutil.copytree(DEMO / "adapters", place / "shelf")


@pytest.fixture
def server(serve, shelf):
    return serve(adapter_roots=f"[{shelf}]")


@pytest.fixture
def web(server):
    with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client:
        yield client


def load(web, name, folder):
    return web.put(f"/v1/adapters/{name}", json={"source": str(folder)})


def say(folder, **files):
    """Write files into an adapter's folder."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("_DOT_", ".")).write_text(text)


def ask(web, model, content=QUESTION, **options):
    body = {"model": model, "messages": [{"role": "user", "content": content}], **options}
    return web.post("/v1/chat/completions", json=body).json()


def answer(web, model, content=QUESTION, **options):
    return ask(web, model, content, **options)["choices"][0]["message"]["content"]


def test_an_adapter_is_talked_to_as_its_folder_says(server, web, shelf):
    assert answer(web, "math", **GREEDY) == ANSWER
    say(
        shelf / "math",
        chat_template_DOT_jinja=ASKS,
        generation_config_DOT_json={"do_sample": False, "max_new_tokens": 40},
        weft_DOT_json={"stop": ["Tens"], "sampling": {"max_tokens": 60}},
    )
    loaded = load(web, "sums", shelf / "math").json()
    assert loaded["defaults"] == web.get("/v1/models/sums").json()["defaults"]
    assert loaded["defaults"] == {
        "chat_template": True, "system_prompt": False, "stop": 1, "added_tokens": 0,
        "sampling": {"temperature": 0.0, "max_tokens": 60},
    }  # fmt: skip
    # Asked anything, the template asks its own question; the stop string ends the answer.
    until = ANSWER[: ANSWER.index("Tens")]
    assert answer(web, "sums", "Hello") == until
    cut = ask(web, "sums", "Hello", max_tokens=3)["choices"][0]
    assert cut["finish_reason"] == "length"
    assert until.startswith(cut["message"]["content"])
    # The same weights under another name are asked as ever.
    assert answer(web, "math", **GREEDY) == ANSWER
    assert web.get("/v1/models/math").json()["defaults"] is None
    digests = {name: web.get(f"/v1/adapters/{name}").json()["digest"] for name in ("sums", "math")}
    assert digests["sums"] == digests["math"]
    server.assert_all_is_back()


def test_a_changed_system_prompt_alone_replaces_an_adapter_in_place(web, shelf):
    def prompt_tokens(model):
        return ask(web, model, max_tokens=1)["usage"]["prompt_tokens"]

    first = load(web, "sums", shelf / "math").json()
    plain = prompt_tokens("sums")
    say(shelf / "math", weft_DOT_json={"system_prompt": "Answer with the sum alone."})
    second = load(web, "sums", shelf / "math").json()
    assert (second["outcome"], second["digest"]) == ("replaced", first["digest"])
    assert second["version"] > first["version"]
    assert prompt_tokens("sums") > plain
    assert load(web, "sums", shelf / "math").json()["outcome"] == "already_loaded"
    (shelf / "math" / "weft.json").unlink()
    assert load(web, "sums", shelf / "math").json()["outcome"] == "replaced"
    assert prompt_tokens("sums") == plain


def test_what_is_wrong_with_a_file_is_told_by_its_name(web, shelf):
    say(shelf / "math", weft_DOT_json={"sampling": {"temperatur": 0.2}})
    refused = load(web, "sums", shelf / "math")
    assert refused.status_code == 400
    assert "weft.json: sampling.temperatur: no such field" in refused.json()["error"]["message"]
    assert web.get("/v1/adapters/sums").status_code == 404


def test_a_template_that_never_ends_costs_nobody_else(server, web, shelf):
    say(shelf / "math", chat_template_DOT_jinja=ENDLESS)
    say(shelf / "sql", chat_template_DOT_jinja=ASKS)
    assert load(web, "hostile", shelf / "math").is_success
    assert load(web, "asks", shelf / "sql").is_success
    refusals = []

    def bother():
        with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client:
            refusals.extend(ask(client, "hostile")["error"] for _ in range(2))

    threads = [threading.Thread(target=bother) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        assert answer(web, "math", **GREEDY) == ANSWER
        assert ask(web, "asks", max_tokens=2)["choices"]
    for thread in threads:
        thread.join()
    assert {error["code"] for error in refusals} == {"adapter_refused"}
    assert all("too much computing" in error["message"] for error in refusals)
    server.assert_all_is_back()
