"""What README.md says of options and endpoints, held against the code."""

import re
from pathlib import Path

import msgspec
import pytest
import yaml

from weft.gateway import app
from weft.runtime.config import Config

README = (Path(__file__).parents[1] / "README.md").read_text()
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
