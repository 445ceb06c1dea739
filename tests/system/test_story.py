"""What a user can see from outside: logs, metrics, health, and the programs of the pages."""

import os
import re
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.system.runs import ROOT, TIMEOUT_S

pytestmark = pytest.mark.system

ANSWER = "57 + 68. Ones: 7 + 8 = 15, write 5, carry 1. Tens: 5 + 6 + 1 = 12. Answer: 125"


def programs(page):
    """The Python programs on a page, without those that need a server at a fixed address."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def run(code, weft):
    """Run a program against this server, though others may be newer on this machine."""
    code = code.replace("Client()", f"Client({str(weft.run_dir)!r})")
    done = subprocess.run(
        [sys.executable, "-c", code, str(weft.run_dir)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
        cwd=ROOT,
    )
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize("index", [0, 1])
def test_the_programs_of_the_ingress_page_run(weft, index):
    code = programs("runtime/INGRESS.md")[index]
    assert run(code, weft).strip() == ANSWER


@pytest.mark.parametrize("index", [0, 1])
def test_the_programs_of_the_readme_run(weft, index):
    code = programs("README.md")[index].replace("http://127.0.0.1:8000", weft.url)
    expected = ["SELECT name FROM hotels ORDER BY rooms DESC LIMIT 15;", ANSWER]
    assert run(code, weft).strip() == expected[index]


def test_a_requests_id_finds_its_story_in_the_log(weft, http):
    body = {"model": "sql", "prompt": "The", "max_tokens": 3, "ignore_eos": True}
    request_id = http.post("/v1/completions", json=body).headers["x-request-id"]
    story = [line for line in weft.log.read_text().splitlines() if request_id in line]
    assert len({line.split()[1] for line in story}) >= 2  # processes
    assert "accepted: 1 prompt tokens" in story[0] or "accepted" in story[0]
    assert any("ended: length" in line and "3 output tokens" in line for line in story)


def test_the_log_tells_of_a_client_that_left(weft, http):
    body = {"prompt": "The", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as response:
        request_id = response.headers["x-request-id"]
        next(response.iter_lines())
    weft.assert_all_is_back()
    story = [line for line in weft.log.read_text().splitlines() if request_id in line]
    assert [line for line in story if "gateway info the client left" in line]
    assert [line for line in story if "scheduler info ended: cancelled" in line]


def test_metrics_count_each_adapters_requests(weft, http):
    def counted():
        text = http.get("/metrics").raise_for_status().text
        return {
            (sample.name, sample.labels.get("model"), sample.labels.get("le")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    body = {"model": "emotion", "prompt": "The", "max_tokens": 7, "ignore_eos": True}
    http.post("/v1/completions", json=body).raise_for_status()
    before = counted()
    for _ in range(3):
        http.post("/v1/completions", json=body).raise_for_status()
    after = counted()

    def grown(name, le=None):
        key = (name, "emotion", le)
        return after[key] - before[key]

    assert grown("weft_adapter_requests_total") == 3
    assert grown("weft_adapter_output_tokens_total") == 21
    assert grown("weft_adapter_prompt_tokens_total") > 0
    assert grown("weft_adapter_queue_seconds_count") == 3
    assert grown("weft_adapter_time_to_first_token_seconds_bucket", "+Inf") == 3
    assert after["weft_adapter_resident", "emotion", None] == 1
    assert after["weft_scheduler_steps_total", None, None] > 0


def test_health_and_readiness_are_told(http):
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json()["models"] == 5


def test_the_topology_is_printed():
    for flags, expected in (([], "scheduler -> detokenizer"), (["--mermaid"], "flowchart LR")):
        command = [sys.executable, "-m", "weft", "topology", *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        assert expected in done.stdout


def test_the_demonstration_shows_all_models_in_the_same_batches():
    done = subprocess.run(
        [sys.executable, "-m", "configs.demo.ask"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "600"},
    )
    assert ANSWER in done.stdout
    assert "SELECT name FROM hotels ORDER BY rooms DESC LIMIT 15;" in done.stdout
    assert done.stdout.count("[steps ") == 20
    assert re.search(r"Step \d+ computed \d+ answers of 5 models in one batch", done.stdout)
