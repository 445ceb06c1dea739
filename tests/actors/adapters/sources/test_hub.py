"""Adapters of a hub, by real child processes and the real huggingface_hub."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.actors.adapters.folders import build, folder, tensors
from tests.actors.adapters.sources.fake_hub import LARGE, cut, other
from weft.actors.adapters.errors import BadAdapter, GivenUp, Unavailable
from weft.actors.adapters.loader import Content
from weft.actors.adapters.sources import downloads
from weft.runtime.config import ConfigError

pytestmark = pytest.mark.slow

CONFIG = "adapter_config.json"


def adapter(seed):
    return folder(weights=tensors(seed=seed))


def digest(seed):
    return build(adapter(seed)).digest


def entries(place):
    return sorted(path.name for path in (place / "cache" / "entries").iterdir())


def partial(place):
    return sorted(path.name for path in (place / "cache" / "partial").iterdir())


def test_a_repository_is_downloaded_once_and_known_by_its_commit(hub, sourced):
    commit = hub.push("org/legal", {**adapter(1), "README.md": b"x", "adapter_model.bin": b"x"})
    loaded = sourced.load("hf://org/legal")
    assert isinstance(loaded, Content)
    assert (loaded.digest, loaded.source) == (digest(1), f"hf://org/legal@{commit}")
    assert Path(loaded.file).stat().st_size == loaded.facts.size_bytes
    asked = len(hub.asked)
    again = sourced.load(loaded.source)
    assert (again.digest, again.source) == (loaded.digest, loaded.source)
    assert len(hub.asked) == asked  # a commit needs no question
    wanted = [path.rpartition("/")[2] for _, path, _ in hub.asked]
    assert {"README.md", "adapter_model.bin"}.isdisjoint(wanted)


def test_a_branch_is_looked_up_at_each_load(hub, sourced):
    first = hub.push("org/a", adapter(1))
    assert sourced.load("hf://org/a@main").source == f"hf://org/a@{first}"
    second = hub.push("org/a", adapter(2))
    loaded = sourced.load("hf://org/a@main")
    assert (loaded.source, loaded.digest) == (f"hf://org/a@{second}", digest(2))
    assert sourced.load(f"hf://org/a@{first}").digest == digest(1)
    assert hub.downloads() == 2


def test_a_tag_a_pull_request_and_a_folder_of_a_repository_are_found(hub, sourced):
    hub.push("org/a", adapter(1), ref="v1")
    hub.push("org/a", adapter(2), ref="refs/pr/7")
    files = {f"de/{name}": content for name, content in adapter(3).items()}
    commit = hub.push("org/a", {**adapter(4), **files})
    assert sourced.load("hf://org/a@v1").digest == digest(1)
    assert sourced.load("hf://org/a@refs/pr/7").digest == digest(2)
    german = sourced.load("hf://org/a/de")
    assert (german.digest, german.source) == (digest(3), f"hf://org/a@{commit}/de")
    assert sourced.load("hf://org/a").digest == digest(4)


def test_small_files_beside_the_weights_come_along(hub, sourced, tmp_path):
    hub.push("org/a", {**adapter(1), "chat_template.jinja": b"{{ x }}", "added_tokens.json": b"{}"})
    sourced.load("hf://org/a")
    [key] = entries(tmp_path)
    names = {path.name for path in (tmp_path / "cache" / "entries" / key).iterdir()}
    assert names == {
        CONFIG, LARGE, "chat_template.jinja", "added_tokens.json", "entry.json", "digest",
    }  # fmt: skip


def refuse_repository(hub):
    return "hf://org/none", "has no model repository org/none"


def refuse_private(hub):
    hub.push("org/a", adapter(1))
    hub.repositories["org/a"].token = "secret"
    return "hf://org/a", "or it is private"


def refuse_gated(hub):
    hub.push("org/a", adapter(1))
    hub.repositories["org/a"].is_gated = True
    return "hf://org/a", "org/a is gated: have its owners grant you access"


def refuse_revision(hub):
    hub.push("org/a", adapter(1))
    return "hf://org/a@v9", "org/a has no revision v9"


def refuse_no_adapter(hub):
    hub.push("org/a", {"config.json": b"{}"})
    return "hf://org/a", "adapter_config.json: there is none in hf://org/a"


def refuse_pickle(hub):
    files = adapter(1)
    hub.push("org/a", {CONFIG: files[CONFIG], "adapter_model.bin": b"x"})
    return "hf://org/a", "pickled weights can run code and are never read"


def refuse_large(hub):
    hub.push("org/a", {**adapter(1), CONFIG: bytes(100_000_000)})
    return "hf://org/a", "adapter_config.json: 100000000 bytes in hf://org/a"


def refuse_bad(hub):
    hub.push("org/a", folder({"use_qalora": True}))
    return "hf://org/a", "adapter_config.json: use_qalora"


@pytest.mark.parametrize(
    "make",
    [
        refuse_repository, refuse_private, refuse_gated, refuse_revision, refuse_no_adapter,
        refuse_pickle, refuse_large, refuse_bad,
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_what_to_do(hub, sourced, make, tmp_path):
    source, words = make(hub)
    result = sourced.load(source)
    assert type(result) is BadAdapter, result
    assert words in str(result)
    assert partial(tmp_path) == []


def test_the_users_token_is_for_the_hub_alone(hub, sourced, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.push("org/a", adapter(1))
    hub.repositories["org/a"].token = "secret"
    assert isinstance(sourced.load("hf://org/a"), Content)
    given = {(path.startswith("/storage/"), token) for _, path, token in hub.asked}
    assert given == {(False, "Bearer secret"), (True, None)}


@pytest.mark.parametrize(
    ("end", "fault"), [("org/a", 500), ("org/a", 429), (LARGE, 503), (LARGE, cut), (LARGE, other)]
)
def test_what_passes_is_tried_again(hub, sourced, end, fault):
    hub.push("org/a", adapter(1))
    hub.faults[end] = [fault]
    assert sourced.load("hf://org/a").digest == digest(1)
    assert hub.faults[end] == []


def test_content_that_is_never_what_the_hub_says_is_given_up(hub, sourced, tmp_path):
    hub.push("org/a", adapter(1))
    hub.faults[LARGE] = [other] * 9
    result = sourced.load("hf://org/a")
    assert isinstance(result, Unavailable)
    assert "did not come as it is there: sha256" in str(result)
    assert entries(tmp_path) == partial(tmp_path) == []


def test_a_hub_that_is_ill_is_no_fault_of_the_adapter(hub, sourced):
    hub.push("org/a", adapter(1))
    hub.faults["org/a"] = [500] * 9
    result = sourced.load("hf://org/a")
    assert isinstance(result, Unavailable)
    assert "answered 500 for hf://org/a; try again later" in str(result)


def test_a_hub_that_is_gone_is_no_fault_of_the_adapter(hub, sourced, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    result = sourced.load("hf://org/a")
    assert isinstance(result, Unavailable)
    assert "http://127.0.0.1:1 cannot be reached for hf://org/a" in str(result)


def test_what_a_configuration_names_is_what_it_was_while_the_hub_is_gone(
    hub, sourced, again, monkeypatch
):
    """A client that has something loaded wants what is there now, and is refused."""
    commit = hub.push("org/a", adapter(1))
    sourced.load("hf://org/a")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    restarted = again()
    configured = restarted.load("hf://org/a", with_file=False)
    assert (configured.digest, configured.source) == (digest(1), f"hf://org/a@{commit}")
    assert isinstance(restarted.load("hf://org/a"), Unavailable)


def test_offline_means_the_caches_alone(hub, sourced, again, monkeypatch, tmp_path):
    commit = hub.push("org/a", adapter(1))
    sourced.load("hf://org/a")
    other = hub.push("org/b", adapter(2))
    save_as_hub_cache(tmp_path / "huggingface" / "hub", "org/b", other, adapter(2))
    hub.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = again()
    assert offline.load("hf://org/a").source == f"hf://org/a@{commit}"
    assert offline.load("hf://org/b").source == f"hf://org/b@{other}"
    assert offline.load("hf://org/b").digest == digest(2)
    refused = offline.load("hf://org/c")
    assert "HF_HUB_OFFLINE is set, and neither adapter_cache nor HF_HUB_CACHE has" in str(refused)
    assert hub.asked == []


def save_as_hub_cache(place, name, commit, files):
    """What huggingface_hub leaves of a download."""
    repository = place / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for file, content in files.items():
        (snapshot / file).write_bytes(content)


def test_what_others_have_downloaded_already_is_copied(hub, sourced, tmp_path):
    commit = hub.push("org/a", adapter(1))
    save_as_hub_cache(tmp_path / "huggingface" / "hub", "org/a", commit, adapter(1))
    assert sourced.load("hf://org/a").digest == digest(1)
    assert hub.downloads() == 0


def test_several_that_want_one_source_share_its_download(hub, sourced):
    hub.push("org/a", adapter(1))
    gate = Gate()
    hub.faults[LARGE] = [gate]
    tickets = [sourced.start("hf://org/a", with_file=True) for _ in range(3)]
    gate.wait_for_somebody()
    tickets += [sourced.start("hf://org/a", with_file=True) for _ in range(3)]
    gate.open.set()
    assert {result.digest for result in sourced.outcomes(*tickets)} == {digest(1)}
    assert hub.downloads() == 1
    assert hub.lookups() == 2  # those who came later may mean a later commit


class Gate:
    """Sends half, and the rest once it is open."""

    def __init__(self):
        self.open, self.reached = threading.Event(), threading.Event()

    def __call__(self, handler, content):
        handler.wfile.write(content[: len(content) // 2])
        self.reached.set()
        self.open.wait(60)
        handler.wfile.write(content[len(content) // 2 :])

    def wait_for_somebody(self):
        assert self.reached.wait(60)


def test_two_processes_share_a_download_too(hub, sourced, again):
    hub.push("org/a", adapter(1))
    gate = Gate()
    hub.faults[LARGE] = [gate]
    first = sourced.start("hf://org/a", with_file=True)
    gate.wait_for_somebody()
    other = again()
    second = other.start("hf://org/a", with_file=True)
    while hub.lookups() < 2:
        time.sleep(0.01)
    gate.open.set()
    assert sourced.outcomes(first)[0].digest == other.outcomes(second)[0].digest == digest(1)
    assert hub.downloads() == 1


def test_a_download_that_is_given_up_leaves_nothing(hub, sourced, tmp_path):
    hub.push("org/a", adapter(1))
    gate = Gate()
    hub.faults[LARGE] = [gate]
    ticket = sourced.start("hf://org/a", with_file=True)
    gate.wait_for_somebody()
    assert partial(tmp_path) != []
    assert sourced.loader.cancel(ticket)
    assert not sourced.loader.cancel(ticket)
    assert isinstance(sourced.outcomes(ticket)[0], GivenUp)
    assert entries(tmp_path) == partial(tmp_path) == []
    gate.open.set()
    assert sourced.load("hf://org/a").digest == digest(1)


def test_a_download_goes_on_for_others_when_one_gives_it_up(hub, sourced):
    commit = hub.push("org/a", adapter(1))
    gate = Gate()
    hub.faults[LARGE] = [gate]
    source = f"hf://org/a@{commit}"
    one, two = (sourced.start(source, with_file=True) for _ in range(2))
    gate.wait_for_somebody()
    assert sourced.loader.cancel(one)
    gate.open.set()
    results = sourced.outcomes(one, two)
    assert [type(result) for result in results] == [GivenUp, Content]
    assert hub.downloads() == 1


def test_a_download_that_takes_too_long_is_ended(hub, sourced, monkeypatch, tmp_path):
    hub.push("org/a", adapter(1))
    gate = Gate()
    hub.faults[LARGE] = [gate] * 9
    ticket = sourced.start("hf://org/a")
    gate.wait_for_somebody()
    [child] = sourced.loader._downloads._children
    child.deadline = 0.0
    [result] = sourced.outcomes(ticket)
    assert isinstance(result, Unavailable)
    assert "was given up; is the network that slow" in str(result)
    gate.open.set()


def test_a_child_that_is_killed_fails_its_own_download(hub, sourced, tmp_path):
    hub.push("org/a", adapter(1))
    hub.push("org/b", adapter(2))
    gate = Gate()
    hub.faults[LARGE] = [gate]
    ticket = sourced.start("hf://org/a")
    gate.wait_for_somebody()
    [child] = sourced.loader._downloads._children
    other = sourced.start("hf://org/b")
    os.kill(child._process.pid, signal.SIGKILL)
    results = sourced.outcomes(ticket, other)
    assert "the process that downloaded it broke (SIGKILL)" in str(results[0])
    assert results[1].digest == digest(2)
    gate.open.set()
    assert sourced.load("hf://org/a").digest == digest(1)
    assert partial(tmp_path) == []


def test_children_that_download_die_with_their_parent_and_leave_nothing_complete(
    hub, again, tmp_path
):
    hub.push("org/a", adapter(1))
    gate = Gate()
    hub.faults[LARGE] = [gate]
    program = f"""
from pathlib import Path
from tests.actors.adapters.sources.conftest import Sourced
sourced = Sourced(Path({str(tmp_path)!r}))
ticket = sourced.start("hf://org/a")
[child] = sourced.loader._downloads._children
print(child._process.pid, flush=True)
sourced.outcomes(ticket)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    gate.wait_for_somebody()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    while is_alive(pid):
        time.sleep(0.01)
    assert partial(tmp_path) != []
    assert entries(tmp_path) == []
    gate.open.set()
    assert again().load("hf://org/a").digest == digest(1)
    assert partial(tmp_path) == []


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_was_evicted_is_downloaded_again(hub, sourced, tmp_path):
    commit = hub.push("org/a", adapter(1))
    source = sourced.load("hf://org/a").source
    shutil.rmtree(tmp_path / "cache" / "entries" / entries(tmp_path)[0])
    assert sourced.load(source).digest == digest(1)
    assert hub.downloads() == 2
    assert source.endswith(commit)


def test_the_cache_stays_within_its_bound(hub, again, tmp_path):
    sourced = again(adapter_cache_mib=1)
    padding = {"tokenizer_config.json": b"{}" + b" " * 400_000}
    for seed in range(5):
        hub.push(f"org/{seed}", {**adapter(seed), **padding})
        assert sourced.load(f"hf://org/{seed}").digest == digest(seed)
        used = sum(f.stat().st_size for f in (tmp_path / "cache" / "entries").rglob("*"))
        assert used < 2**20
    assert len(entries(tmp_path)) == 2
    hub.push("org/large", {**adapter(9), "tokenizer.json": bytes(2**20)})
    assert "raise adapter_cache_mib" in str(sourced.load("hf://org/large"))


@pytest.mark.parametrize("spoil", ["other", "cut", "gone"])
def test_a_damaged_copy_is_noticed_and_downloaded_again(hub, sourced, again, tmp_path, spoil):
    hub.push("org/a", adapter(1))
    source = sourced.load("hf://org/a").source
    copy = tmp_path / "cache" / "entries" / entries(tmp_path)[0] / LARGE
    if spoil == "other":
        copy.write_bytes(adapter(2)[LARGE])
    elif spoil == "cut":
        copy.write_bytes(copy.read_bytes()[:-1])
    else:
        copy.unlink()
    restarted = again()
    loaded = restarted.load(source)
    assert (loaded.digest, loaded.source) == (digest(1), source)
    assert hub.downloads() == 2
    assert [str(path) for path in restarted.run_dir.iterdir()] == [loaded.file]


def test_what_a_client_asks_for_goes_before_what_the_configuration_names(hub, sourced):
    for number in range(8):
        hub.push(f"org/{number}", adapter(number))
    gates = [Gate() for _ in range(4)]
    hub.faults[LARGE] = list(gates)
    named = [sourced.start(f"hf://org/{number}") for number in range(7)]
    asked = sourced.start("hf://org/7", with_file=True)
    for gate in gates:
        gate.wait_for_somebody()
    gates[0].open.set()
    assert sourced.outcomes(asked)[0].digest == digest(7)
    for gate in gates[1:]:
        gate.open.set()
    assert [r.digest for r in sourced.outcomes(*named)] == [digest(n) for n in range(7)]


def test_a_cache_that_cannot_be_made_is_a_fault_of_the_configuration(hub, again, tmp_path):
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"adapter_cache: .* cannot be made or written"):
        again()


def test_a_child_ends_when_nothing_is_to_be_downloaded(hub, sourced):
    for number in range(6):
        hub.push(f"org/{number}", adapter(number))
    tickets = [sourced.start(f"hf://org/{number}") for number in range(6)]
    assert len(sourced.loader._downloads._children) == downloads.CHILDREN_MAX
    results = sourced.outcomes(*tickets)
    assert [result.digest for result in results] == [digest(number) for number in range(6)]
    assert len(sourced.loader._downloads._children) == 0
