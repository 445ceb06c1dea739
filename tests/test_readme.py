"""What README.md says of options, endpoints and commands, held against the code."""

import re
import shlex
from pathlib import Path

import msgspec
import pytest
import yaml

from weft.gateway import app
from weft.runtime import cli
from weft.runtime.config import Config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
OPTIONS = dict(re.findall(r"^\| `(\w+)` \| (?:`([^`]*)`)? *\|", README, re.M))


def test_every_option_is_in_the_table_and_no_other():
    assert list(OPTIONS) == list(Config.__struct_fields__)


@pytest.mark.parametrize("field", msgspec.structs.fields(Config), ids=lambda field: field.name)
def test_the_table_has_the_defaults(field):
    text = OPTIONS[field.name]
    if field.default_factory is not msgspec.NODEFAULT:
        assert yaml.safe_load(text) == field.default_factory()
    elif field.default in (None, msgspec.NODEFAULT):
        assert text == ""
    else:
        assert yaml.safe_load(text) == field.default


def test_the_example_of_a_configuration_is_one():
    example = yaml.safe_load(re.search(r"```yaml\n(.*?)```", README, re.S)[1])
    assert msgspec.convert(example, Config).adapters["legal"] == "/adapters/legal"


def test_every_endpoint_is_named():
    paths = app.create(Config(model="m"), Path("/nowhere")).openapi()["paths"]
    assert len(paths) >= 8
    for path, methods in paths.items():
        for method in methods:
            assert f"`{method.upper()} {path}`" in README


def test_the_command_that_shows_a_topology_says_what_stands_there(capsys, monkeypatch):
    command, last = re.search(r"weft (topology .*) \| tail -1\n(.*)\n", README).groups()
    monkeypatch.chdir(ROOT)
    assert cli.main(shlex.split(command)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == last


@pytest.mark.parametrize("size", ["--tensor-parallel-size", "--data-parallel-size"])
def test_the_drawn_topologies_are_those_of_two_runners_and_of_two_replicas(capsys, size):
    assert cli.main(["topology", size, "2", "--mermaid"]) == 0
    assert f"```mermaid\n{capsys.readouterr().out}```\n" in ARCHITECTURE
