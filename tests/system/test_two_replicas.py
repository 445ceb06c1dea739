"""Two schedulers with runners of their own over one adapter store: processes of one machine."""

import asyncio
import random
import shutil
import threading

import httpx
import pytest

from tests.system.chats import (
    MODELS,
    assert_each_task_is_done,
    gather_over_http,
    gather_over_zmq,
    kill_while_answering,
)
from tests.system.runs import ROOT, TIMEOUT_S
from weft.runtime.client import Client, Refused

pytestmark = pytest.mark.system

ONE_LINE = "data_parallel_size: 2"
CONTENTS = ("math", "sql", "function", "emotion")
NAMES = ("n0", "n1", "n2")
QUESTION = [{"role": "user", "content": "What is 57 plus 68?"}]


@pytest.fixture
def shelf(place):
    """Copies of the demonstration's adapters, in a folder that requests may name."""
    return shutil.copytree(ROOT / "configs/demo/adapters", place / "shelf")


def requests_of_each(server):
    router = server.state()["sections"]["router"]
    return [router[f"replica{index}_requests_total"] for index in range(2)]


def test_two_replicas_serve_from_one_line_and_share_the_requests(serve, held_out):
    server = serve(lines=ONE_LINE)
    asked = [(example["task"], example["prompt"]) for example in held_out]
    answers = asyncio.run(gather_over_http(server, asked, temperature=0))
    assert_each_task_is_done(held_out, answers)
    server.assert_all_is_back()
    sections = server.state()["sections"]
    assert {"router", "scheduler0", "scheduler1", "runner0_0", "runner1_0"} < sections.keys()
    requests = requests_of_each(server)
    assert sum(requests) == len(asked)
    assert min(requests) >= len(asked) // 5
    assert all(sections[f"scheduler{index}"]["steps_total"] > 0 for index in range(2))
    metrics = httpx.get(f"{server.url}/metrics", timeout=TIMEOUT_S).text
    assert 'weft_scheduler_steps_total{replica="1"}' in metrics
    server.stop()
    assert server.end()[0] == 0, server.log.read_text()
    server.assert_nothing_is_left()


def test_two_pairs_of_runners_give_each_seed_the_tokens_of_a_single_one(weft, serve, held_out):
    prompts = random.Random(5).sample([example["prompt"] for example in held_out], 60)
    asked = [(MODELS[i % 5], prompt) for i, prompt in enumerate(prompts)]
    options = {"temperature": 0.8, "seed": 3, "max_tokens": 48}
    expected = asyncio.run(gather_over_zmq(weft, asked, **options))
    server = serve(
        lines=ONE_LINE, tensor_parallel_size=2, threads=1, max_loras_per_batch=2,
        max_loaded_loras=2, kv_cache_memory_mib=16, load_balance_method="round_robin",
    )  # fmt: skip
    assert asyncio.run(gather_over_zmq(server, asked, **options)) == expected
    assert requests_of_each(server) == [30, 30]
    server.assert_all_is_back()


@pytest.mark.parametrize("role", ["scheduler1", "router"])
def test_when_a_process_of_either_replica_is_killed_the_run_ends(serve, role):
    server = serve(lines=ONE_LINE)
    kill_while_answering(server, role)
    server.end()
    assert server.popen.returncode == 1
    assert f"the process {role} was killed by SIGKILL" in server.log.read_text()
    server.assert_nothing_is_left()


def test_two_clients_change_the_same_names_at_once_and_every_answer_is_the_right_adapters(
    serve, shelf
):
    """Both load, replace and unload three names while others ask for them, on both replicas."""
    server = serve(
        lines=ONE_LINE, adapter_roots=f"[{shelf}]", max_loaded_loras=3, max_loras_per_batch=2,
        kv_cache_memory_mib=48, load_balance_method="round_robin",
    )  # fmt: skip
    answers, wrong, outcomes = {}, [], set()
    with Client(server.run_dir) as client:
        for content in CONTENTS:
            answers[content] = ask(client, content)
            assert ask(client, content) == answers[content]  # of the other replica
    assert len(set(answers.values())) == len(CONTENTS)
    is_over = threading.Event()

    def flood(seed):
        rng = random.Random(seed)
        with Client(server.run_dir) as client:
            while not is_over.is_set():
                told = ask(client, rng.choice((*NAMES, *CONTENTS)))
                if told not in (*answers.values(), "model_not_found"):
                    wrong.append(told)

    def change(seed):
        rng = random.Random(seed)
        with Client(server.run_dir) as client:
            for _ in range(80):
                name, content = rng.choice(NAMES), rng.choice(CONTENTS)
                outcomes.add(operate(client, rng.random(), name, str(shelf / content)))

    flooding = [threading.Thread(target=flood, args=(seed,)) for seed in range(4)]
    changing = [threading.Thread(target=change, args=(seed,)) for seed in range(4, 6)]
    for thread in (*flooding, *changing):
        thread.start()
    for thread in changing:
        thread.join(2 * TIMEOUT_S)
    is_over.set()
    for thread in flooding:
        thread.join(TIMEOUT_S)
    assert not any(thread.is_alive() for thread in (*flooding, *changing))
    assert not wrong
    known = {"loaded", "replaced", "already_loaded", "unloaded", "model_not_found"}
    assert known <= outcomes
    assert outcomes <= {*known, "cancelled"}  # unloaded before it was read
    assert_both_agree(server, shelf, answers)


def ask(client, name):
    """The answer of a name, or why there is none."""
    try:
        return "".join(client.chat(QUESTION, model=name, temperature=0, max_tokens=12))
    except Refused as refused:
        return refused.code


def operate(client, chance, name, source):
    try:
        if chance < 0.6:
            return client.load_adapter(name, source, replace=True).outcome
        return client.unload_adapter(name).outcome
    except Refused as refused:
        return refused.code


def assert_both_agree(server, shelf, answers):
    """Assert that a name means the same on both replicas, and that what has none is gone."""
    with Client(server.run_dir) as one, Client(server.run_dir) as other:
        means = {adapter.name: adapter for adapter in one.adapters()}
        assert means == {adapter.name: adapter for adapter in other.adapters()}
        for name in NAMES:
            told = {ask(client, name) for client in (one, other, one, other)}
            if name in means:
                assert told == {answers[means[name].root.rpartition("/")[2]]}
            else:
                assert told == {"model_not_found"}
        assert min(requests_of_each(server)) > 20
        server.assert_all_is_back()
        for name in means:
            one.unload_adapter(name)
        assert other.adapters() == []
    sections = server.state()["sections"]
    for index in range(2):
        assert sections[f"scheduler{index}"]["adapters_resident"] == 0
        assert sections[f"scheduler{index}"]["pages_adapters"] == 0
    assert sections["adapters"]["loaded"] == sections["adapters"]["known"] == 0
    assert list((server.run_dir / "adapters").iterdir()) == []
