import json
import tempfile
from pathlib import Path

import httpx
import openai
import pytest

from tests.system.runs import ROOT, TIMEOUT_S, Server
from weft.runtime.client import Client, asynchronous, blocking


@pytest.fixture(autouse=True)
def patient_clients(monkeypatch):
    """A machine may be busier with tests than with anything that clients should put up with."""
    for client in (asynchronous, blocking):
        monkeypatch.setattr(client, "ANSWER_TIMEOUT_S", TIMEOUT_S)


@pytest.fixture
def place():
    """A directory for this test's runs alone, not too deep for a socket's path."""
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


@pytest.fixture(scope="session")
def weft():
    """The demonstration, served once for all tests that leave it alive."""
    with tempfile.TemporaryDirectory() as place:
        server = Server(Path(place))
        try:
            server.serve()
            yield server
            server.stop()
            code, _ = server.end()
            assert code == 0, server.log.read_text()
            server.assert_nothing_is_left()
        finally:
            server.popen.kill()
            server.popen.communicate()


@pytest.fixture
def serve(place):
    """Start a server of a test's own, to be overloaded or ended."""
    servers = []

    def serve(**options):
        server = Server(place, **options)
        servers.append(server)
        server.serve()
        return server

    yield serve
    for server in servers:
        server.popen.kill()
        server.popen.communicate()
        print(server.log.read_text())  # shown if the test has failed


@pytest.fixture
def openai_client(weft):
    with openai.OpenAI(base_url=f"{weft.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def http(weft):
    with httpx.Client(base_url=weft.url, timeout=TIMEOUT_S) as client:
        yield client


@pytest.fixture
def zmq_client(weft):
    with Client(weft.run_dir) as client:
        yield client


@pytest.fixture(scope="session")
def held_out():
    """Prompts that no adapter was trained on: dicts of task, prompt and answer."""
    lines = (ROOT / "configs/demo/held_out.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
