"""Adapters read by real child processes: what they make of them, and how each of them may end."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from tests.actors.adapters.folders import BASE, build, folder, tensors
from tests.actors.adapters.sandboxed import outcomes, pids_of, write
from weft.actors.adapters import sandbox
from weft.actors.adapters.actor import AdapterStore
from weft.actors.adapters.errors import BadAdapter
from weft.actors.adapters.files import LocalFiles
from weft.actors.adapters.loader import Content
from weft.actors.adapters.sandbox import SandboxedLoader
from weft.runtime.actor import Turn
from weft.runtime.config import Config, ConfigError
from weft.runtime.messages import Acquire


def outcome(loader, source, *, with_file=False):
    [result] = outcomes(loader, [loader.start(source, with_file=with_file)])
    return result


def taken(result):
    """The content of a result's file, which goes."""
    path = Path(result.file)
    content = path.read_bytes()
    path.unlink()
    return content


def test_a_child_makes_of_a_folder_what_this_process_makes_of_it(loader, tmp_path):
    expected = build(folder())
    result = outcome(loader, write(tmp_path / "a", folder()), with_file=True)
    assert isinstance(result, Content)
    content = taken(result)
    assert content == b"".join(expected.file())
    granules = expected.granules(BASE, BASE.shards(1))
    facts = (expected.digest, expected.rank, len(content), granules, 0, True, [], None)
    assert msgspec.structs.astuple(result.facts) == facts


def test_a_refused_adapter_leaves_no_file(loader, tmp_path):
    result = outcome(loader, write(tmp_path / "a", folder({"use_qalora": True})), with_file=True)
    assert isinstance(result, BadAdapter)
    assert "use_qalora" in str(result)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_child_keeps_nothing_open_of_what_it_has_refused(loader, tmp_path):
    bad = write(tmp_path / "bad", folder({"use_qalora": True}))
    good = write(tmp_path / "good", folder())
    tickets = [loader.start(bad, with_file=True) for _ in range(60)]
    assert all("use_qalora" in str(result) for result in outcomes(loader, tickets))
    taken(outcome(loader, good, with_file=True))


@pytest.mark.parametrize("source", ["", "a\0b", "\ud800", "x" * 5000])
def test_what_is_no_path_is_refused(loader, source):
    assert "is no path; mend it" in str(outcome(loader, source))


def test_a_child_that_is_killed_fails_its_adapter_alone(loader, tmp_path):
    good = write(tmp_path / "good", folder())
    slow = tmp_path / "slow"
    write(slow, folder())
    ticket = loader.start(str(slow), with_file=True)
    [pid] = stopped(loader)
    others = [loader.start(good, with_file=False) for _ in range(3)]
    os.kill(pid, signal.SIGKILL)
    results = outcomes(loader, [ticket, *others])
    assert "was killed by SIGKILL" in str(results[0])
    assert [type(result) for result in results[1:]] == [Content] * 3
    assert loader.deaths == 1


def stopped(loader):
    """Stop every child where it is."""
    pids = pids_of(loader)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    return pids


def test_a_child_that_hangs_is_given_up_and_others_are_read_meanwhile(loader, tmp_path):
    ticket = loader.start(write(tmp_path / "a", folder()), with_file=True)
    stopped(loader)
    [hanging] = loader._children.values()
    other = loader.start(write(tmp_path / "b", folder()), with_file=False)
    assert isinstance(outcomes(loader, [other])[0], Content)
    hanging.deadline = 0.0
    [result] = outcomes(loader, [ticket])
    assert "took more than 60 seconds, and was given up" in str(result)


def test_a_child_that_dies_of_what_came_before_is_no_fault_of_the_adapter(loader, tmp_path):
    source = write(tmp_path / "a", folder())
    assert isinstance(outcome(loader, source), Content)
    stopped(loader)
    ticket = loader.start(source, with_file=True)
    os.kill(pids_of(loader)[0], signal.SIGKILL)
    [result] = outcomes(loader, [ticket])
    taken(result)
    assert loader.deaths == 1


def test_a_child_that_has_died_idle_is_replaced(loader, tmp_path):
    source = write(tmp_path / "a", folder())
    outcome(loader, source)
    os.kill(pids_of(loader)[0], signal.SIGKILL)
    assert isinstance(outcome(loader, source), Content)


def test_more_children_come_for_many_adapters_and_each_is_read_once(loader, tmp_path):
    sources = [write(tmp_path / str(i), folder(weights=tensors(seed=i))) for i in range(8)]
    tickets = [loader.start(sources[i % 8], with_file=False) for i in range(600)]
    results = outcomes(loader, tickets)
    assert 1 < loader.children <= sandbox.CHILDREN_MAX
    digests = [build(folder(weights=tensors(seed=i))).digest for i in range(8)]
    assert [result.digest for result in results] == [digests[i % 8] for i in range(600)]


def test_a_child_is_replaced_after_so_many_adapters(loader, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "JOBS_MAX", 2)
    source = write(tmp_path / "a", folder())
    pids = set()
    for _ in range(5):
        ticket = loader.start(source, with_file=False)
        pids |= set(pids_of(loader))
        outcomes(loader, [ticket])
    assert len(pids) == 3
    assert loader.deaths == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (b"\xc1", "the process that read it broke"),
        (msgspec.msgpack.encode({"type": "facts"}), "broke"),
        (msgspec.msgpack.encode({"type": "facts", "digest": "../a", "rank": 1}), "broke"),
    ],
)
def test_a_child_that_says_what_it_should_not_is_not_believed(
    loader, tmp_path, monkeypatch, words, reason
):
    ticket = loader.start(write(tmp_path / "a", folder()), with_file=True)
    [child] = loader._children.values()
    stopped(loader)
    monkeypatch.setattr(child, "hear", lambda: words)
    loader._hear(child)
    [(found, result)] = loader.finished()
    assert found == ticket
    assert reason in str(result)
    assert loader.children == 0


def test_a_base_that_cannot_be_split_is_a_fault_of_the_configuration(tmp_path):
    config = Config(model="/base", tensor_parallel_size=3)
    with select.epoll() as wakes, pytest.raises(ConfigError):
        SandboxedLoader(config, BASE, tmp_path, wakes)


def test_children_die_with_their_parent(tmp_path):
    program = f"""
import os, select, sys
from pathlib import Path
from tests.actors.adapters.folders import BASE
from weft.actors.adapters.sandbox import SandboxedLoader
from weft.runtime.config import Config
loader = SandboxedLoader(Config(model="/base"), BASE, Path({str(tmp_path)!r}), select.epoll())
loader.start({write(tmp_path / "a", folder())!r}, with_file=True)
while not loader.finished():
    loader.wait()
print(*[child._process.pid for child in loader._children.values()], flush=True)
os.kill(os.getpid(), 9)
"""
    found = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False)
    assert found.returncode == -signal.SIGKILL
    [pid] = map(int, found.stdout.split())
    deadline = time.monotonic() + 120
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_store_serves_what_is_good_among_what_is_not(loader, tmp_path):
    folders = {
        "good": folder(),
        "qalora": folder({"use_qalora": True}),
        "cut": folder(weights=folder()["adapter_model.safetensors"][:-1]),
        "empty": {},
    }
    adapters = {name: write(tmp_path / name, files) for name, files in folders.items()}
    config = Config(model="/base", adapters=adapters)
    store = AdapterStore(config, LocalFiles(), loader, str(tmp_path), started_s=0)
    (tmp_path / "adapters").mkdir()
    turn = Turn(0, lambda peer: 9)
    [(_, catalog)] = store.advance(turn)
    entries = {entry.name: entry for entry in catalog.adapters}
    digest = entries["good"].digest
    assert digest == build(folder()).digest
    assert "use_qalora" in entries["qalora"].refused
    assert "the file is damaged" in entries["cut"].refused
    assert "there is none" in entries["empty"].refused
    store.receive("scheduler", Acquire(digest), 0)
    sends = []
    while not sends:
        sends = store.advance(turn)
        store.check()
        if not sends:
            loader.wait()
    [(_, acquired)] = sends
    assert Path(acquired.path).read_bytes() == b"".join(build(folder()).file())
    assert os.listdir(tmp_path / "adapters") == [f"{digest}.safetensors"]
