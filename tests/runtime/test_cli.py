import re
import subprocess
import sys
from pathlib import Path

import pytest

from weft.runtime import cli
from weft.runtime.config import Config
from weft.runtime.meanings import MEANINGS
from weft.runtime.topology import TOPOLOGY, as_mermaid, as_table, with_runners

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    path = tmp_path / "weft.yaml"
    path.write_text("model: base\n")
    return path


@pytest.fixture
def launched(monkeypatch):
    """The configurations that would have been launched."""
    launched = []

    class Recorder:
        def __init__(self, config, topology_name):
            launched.append(config)

        def run(self):
            return 0

    monkeypatch.setattr(cli, "Launcher", Recorder)
    monkeypatch.setattr(cli.log, "setup", lambda role, level: None)
    return launched


def test_topology_is_shown_as_a_table_or_a_diagram(capsys):
    assert cli.main(["topology"]) == 0
    assert capsys.readouterr().out.strip() == as_table(TOPOLOGY)
    assert cli.main(["topology", "--mermaid"]) == 0
    assert capsys.readouterr().out.strip() == as_mermaid(TOPOLOGY)


def test_the_topology_is_that_of_a_configuration(path, capsys):
    path.write_text("model: base\ntensor_parallel_size: 2\n")
    assert cli.main(["topology", str(path)]) == 0
    assert capsys.readouterr().out.strip() == as_table(with_runners(2))
    for given in ([str(path)], []):
        assert cli.main(["topology", *given, "--tensor-parallel-size", "4", "--mermaid"]) == 0
        assert capsys.readouterr().out.strip() == as_mermaid(with_runners(4))
    assert cli.main(["topology", str(path), "--data-parallel-size", "3"]) == 0
    assert capsys.readouterr().out.strip() == as_table(with_runners(2, replicas=3))
    assert cli.main(["topology", "--tensor-parallel-size=0"]) == 2
    assert "tensor_parallel_size is 0: it must be positive" in capsys.readouterr().err


def test_every_option_of_the_configuration_is_a_flag(path, launched, capsys):
    flags = ["--max-num-seqs", "32", "--enable-prefix-caching=false", "--adapters", "{a: /x/a}"]
    assert cli.main(["serve", str(path), *flags]) == 0
    assert launched[0].max_num_seqs == 32
    assert launched[0].enable_prefix_caching is False
    assert launched[0].adapters == {"a": "/x/a"}
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in text for name in Config.__struct_fields__)


def test_every_flag_is_explained_as_readme_does(capsys):
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    # argparse breaks lines at spaces and behind hyphens.
    shown = "".join(capsys.readouterr().out.split())
    table = re.sub(r" \(\[\w+\]\(#.*?\)\)", "", (ROOT / "README.md").read_text())
    assert MEANINGS.keys() == set(Config.__struct_fields__)
    for name, meaning in MEANINGS.items():
        assert re.search(rf"\| `{name}` \| .*\| {re.escape(meaning)} \|", table), name
        assert "".join(meaning.split()) in shown
    assert "--quantizationnone|int8" in shown


def test_a_path_on_the_command_line_is_relative_to_where_the_user_is(path, launched, monkeypatch):
    other = path.parent / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    monkeypatch.chdir(other)
    assert cli.main(["serve", str(path), "--model", "."]) == 0
    assert launched[0].model == str(other)


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--max-num-seq=3", "did you mean --max-num-seqs?"),
        ("--max_num_seqs", "did you mean --max-num-seqs?"),
        ("--zzzzzzz", "see `weft serve --help`"),
    ],
)
def test_an_unknown_flag_is_refused_with_the_nearest_known_name(path, launched, capsys, flag, hint):
    assert cli.main(["serve", str(path), flag]) == 2
    assert capsys.readouterr().err == f"weft: error: unknown argument {flag}; {hint}\n"
    assert not launched


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["adapters", "prefetch", "a", "b"], "weft adapters prefetch"),
        (["adapters", "--lmit=3"], "weft adapters"),
        (["topology", "--mermaid", "--x"], "weft topology"),
    ],
)
def test_an_unknown_argument_of_another_command_leads_to_its_own_help(capsys, arguments, command):
    assert cli.main(arguments) == 2
    shown = f"weft: error: unknown argument {arguments[-1]}; see `{command} --help`\n"
    assert capsys.readouterr().err == shown


def test_a_refused_configuration_is_one_line(path, launched, capsys):
    assert cli.main(["serve", str(path), "--port", "70000"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("weft: error: port is 70000")
    assert error.count("\n") == 1


def test_the_package_is_a_command():
    shown = subprocess.run(
        [sys.executable, "-m", "weft", "topology"], capture_output=True, text=True, check=True
    )
    assert "scheduler" in shown.stdout


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_was_closed_leads_nowhere(closed, tmp_path):
    code = (
        "import os, subprocess, sys; from weft.runtime import cli; cli.main(['topology']); "
        "shown = [os.readlink(f'/proc/self/fd/{number}') for number in range(3)]; "
        "child = 'import os; [os.fstat(number) for number in range(3)]; print(1)'; "
        "failed = subprocess.call([sys.executable, '-c', child]); print(2, flush=True); "
        "open(sys.argv[1], 'w').write(f'{failed} {shown}')"
    )
    path = tmp_path / "said"
    command = f'exec "$0" -c "$1" "$2" {closed}'
    subprocess.run(
        ["sh", "-c", command, sys.executable, code, path], capture_output=True, check=True
    )
    failed, shown = path.read_text().split(" ", 1)
    assert failed == "0"
    assert shown.count("/dev/null") >= closed.count("&-")


def test_the_command_line_does_not_load_what_only_a_runner_needs():
    code = "import sys, weft.runtime.cli; print({'torch', 'fastapi'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"
