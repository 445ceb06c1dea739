"""One pool for KV and adapters, as a client and an operator see it."""

import asyncio
from collections import Counter

import httpx
import pytest

from tests.system.chats import TASKS, gather_over_zmq, question
from tests.system.runs import TIMEOUT_S
from weft.runtime.client import Client, Failed

pytestmark = pytest.mark.system


def test_adapters_stay_on_the_device_while_there_is_room(serve):
    server = serve(max_loras_per_batch=1, max_loaded_loras=len(TASKS))
    asked = [(task, "What is 57 plus 68?") for task in 2 * TASKS]
    first = asyncio.run(gather_over_zmq(server, asked, temperature=0, max_tokens=8))
    assert first[: len(TASKS)] == first[len(TASKS) :]
    state = server.state()["sections"]
    assert state["scheduler"]["adapters_resident"] == len(TASKS)
    assert state["scheduler"]["adapter_evictions_total"] == 0
    assert state["scheduler"]["pages_adapters"] == state["scheduler"]["pages_adapters_idle"] > 0
    assert state["runner0"]["adapter_slots_filled"] == len(TASKS)
    metrics = httpx.get(f"{server.url}/metrics", timeout=TIMEOUT_S).text
    resident = [line for line in metrics.splitlines() if line.startswith("weft_adapter_resident{")]
    assert Counter(line.rpartition(" ")[2] for line in resident)["1.0"] == len(TASKS)
    server.assert_all_is_back()


def test_an_adapter_without_room_says_what_to_raise_and_others_are_served(serve):
    """The demonstration's adapters have ranks of 4 to 64."""
    server = serve(kv_cache_memory_mib=1, max_num_seqs=4, block_size=4)
    answered, refused = [], []
    with Client(server.run_dir) as client:
        for task in TASKS:
            try:
                "".join(client.chat(question("Hi"), model=task, max_tokens=4))
                answered.append(task)
            except Failed as error:
                refused.append(str(error))
    assert answered
    assert refused
    assert all("raise kv_cache_memory_mib (on a CPU)" in reason for reason in refused)
    server.assert_all_is_back()
