import os
import select
import tempfile
from pathlib import Path

import pytest

from tests.actors.adapters.folders import BASE
from tests.actors.adapters.sources.fake_hub import FakeHub
from weft.actors.adapters.sandbox import SandboxedLoader
from weft.actors.adapters.sources.build import with_sources
from weft.runtime.config import Config


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub, and an environment in which it is the only one."""
    hub = FakeHub()
    for name in [name for name in os.environ if name.startswith("HF_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    yield hub
    hub.close()


class Sourced:
    """A loader of real children over a cache of its own."""

    def __init__(self, place, **options):
        self.run_dir = Path(tempfile.mkdtemp(prefix="run-", dir=place))
        config = Config(model="/base", adapter_cache=str(place / "cache"), **options)
        self._wakes = select.epoll()
        self._found = {}
        folders = SandboxedLoader(config, BASE, self.run_dir, self._wakes)
        self.loader = with_sources(folders, config, BASE, self._wakes)

    def start(self, source, *, with_file=False):
        return self.loader.start(source, with_file=with_file)

    def outcomes(self, *tickets):
        while not self._found.keys() >= set(tickets):
            self.loader.wait()
            self._found |= dict(self.loader.finished())
            self.loader.check()
        return [self._found.pop(ticket) for ticket in tickets]

    def load(self, source, *, with_file=True):
        """What a client is told that has a source loaded."""
        [result] = self.outcomes(self.start(source, with_file=with_file))
        return result

    def close(self):
        self.loader.close()
        self._wakes.close()


@pytest.fixture
def sourced(hub, tmp_path):
    sourced = Sourced(tmp_path)
    yield sourced
    sourced.close()
    assert list((tmp_path / "cache" / "partial").iterdir()) == []


@pytest.fixture
def again(hub, tmp_path):
    """A function that makes another loader over the same cache, as after a restart."""
    made = []

    def make(**options):
        made.append(Sourced(tmp_path, **options))
        return made[-1]

    yield make
    for sourced in made:
        sourced.close()
