"""What may import what, and what nobody may use: read from the source, so that nothing slips by."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("runtime", "kernels", "gateway", "actors")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]

# The longest match says what else of weft a module may import.
MAY_IMPORT = {
    "runtime": set(),
    "kernels": set(),
    "gateway": {"runtime"},
    "actors": {"runtime"},
    "actors/runner": {"runtime", "kernels"},
}

# They run code that is in the data, or carry it.
BANNED = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "multiprocessing"}
BANNED_CALLS = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "torch.load"}
BANNED_METHODS = {"send_pyobj", "recv_pyobj"}  # pyzmq's, of any socket

# An actor touches nothing itself: these are the loop's.
OUTSIDE = {
    "zmq",
    "socket",
    "threading",
    "asyncio",
    "subprocess",
    "random",
    "secrets",
    "uuid",
    "time",
}
ACTORS = [path for path in SOURCES if path.parts[-3:-2] == ("actors",) and path.name == "actor.py"]


def name_of(path):
    return str(path.relative_to(ROOT))


def imports(path):
    """Every imported module, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_imports_only_layers_below_it(path):
    own = path.relative_to(ROOT).parts[0]
    layer = max((key for key in MAY_IMPORT if name_of(path).startswith(key)), key=len)
    used = {parts[1] for m in imports(path) if (parts := m.split("."))[0] == "weft" and parts[1:]}
    assert used <= MAY_IMPORT[layer] | {own}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_torch_is_for_kernels_and_runners_alone(path):
    if not name_of(path).startswith(("kernels/", "actors/runner/")):
        assert not {"torch", "triton"} & {module.split(".")[0] for module in imports(path)}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_that_runs_data_as_code_is_used(path):
    assert not BANNED & {module.split(".")[0] for module in imports(path)}
    tree = ast.walk(ast.parse(path.read_text()))
    called = {ast.unparse(node.func) for node in tree if isinstance(node, ast.Call)}
    assert not BANNED_CALLS & called
    assert not BANNED_METHODS & {name.rpartition(".")[2] for name in called}


@pytest.mark.parametrize("path", ACTORS, ids=name_of)
def test_an_actor_touches_no_socket_thread_clock_or_random_source(path):
    assert not OUTSIDE & {module.split(".")[0] for module in imports(path)}


def test_there_are_actors_to_look_at():
    assert len(ACTORS) >= 3
