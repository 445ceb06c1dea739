"""INGRESS.md is read here as a client's author would, and held against the messages themselves."""

import re
import types
import typing
from pathlib import Path

import pytest

from weft.runtime import codec, messages
from weft.runtime.client import events, session, wire
from weft.runtime.messages import METRIC_BUCKETS_S
from weft.runtime.topology import CLIENT, TOPOLOGY

PAGE = (Path(__file__).parents[2] / "runtime" / "INGRESS.md").read_text()

# Everything that a client may send or hear.
EDGES = [edge for edge in TOPOLOGY.edges if edge.connects == CLIENT]
SAID = {kind for edge in EDGES for kind in (*edge.forward, *edge.backward)}
CONTROL = set(typing.get_args(messages.LinkInbox))
PARTS = {
    messages.ModelEntry,
    messages.AdapterState,
    messages.DefaultsSummary,
    messages.End,
    messages.TextLogprobs,
    messages.AdapterMetrics,
    messages.TenantMetrics,
    messages.LoadMetrics,
}
MAPS = {
    "Lora": messages.Lora,
    "ChatMessage": messages.ChatMessage,
    "Sampling": messages.Sampling,
    "SamplingDefaults": messages.SamplingDefaults,
}

# Values as the page spells them.
DEFAULTS = {"nil": None, "false": False, "true": True, "0": 0, "1": 1, "[]": [], "{}": {}}

WORDS = {int: "int", float: "float", str: "str", bool: "bool", bytes: "bin", types.NoneType: "nil"}


def tables():
    """Each table of the page, as a list of rows of cells; the first row is the header."""
    table = []
    for line in [*PAGE.splitlines(), ""]:
        if not line.startswith("|") and table:
            yield table
            table = []
        elif line.startswith("|") and not line.startswith("|---"):
            table.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])


def documented_arrays():
    """Name of message or part -> (field, type) in order."""
    found = {}
    for header, *table in tables():
        if header[0] not in ("message", "part"):
            continue
        for name, field, kind, *_ in table:
            if name:
                fields = found.setdefault(name, [])
            if field:
                fields.append((field, kind))
    return found


def documented_map(name):
    """(key, type) of the map that is described under a name; its table follows the name."""
    first_key = re.search(
        r"\*\*" + name + r"\*\* is a map.*?\n\| key .*?\n\|---.*?\n\| (\w+)", PAGE, re.S
    )
    for header, *table in tables():
        if header[0] == "key" and table[0][0] == first_key[1]:
            return [(cells[0], cells[1]) for cells in table]


def words(annotation):
    """A type as the page spells it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in WORDS:
        return WORDS[annotation]
    if origin is typing.Literal:
        return "str"
    if origin is list:
        return f"array of {words(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(map(words, arguments))}]"
    if origin is dict:
        return f"map of {words(arguments[0])} to {words(arguments[1])}"
    if origin is types.UnionType:
        *others, last = map(words, arguments)
        return f"{', '.join(others)}{',' if len(others) > 1 else ''} or {last}"
    return annotation.__name__


def fields(kind):
    hints = typing.get_type_hints(kind)
    return [(name, words(hints[name])) for name in kind.__struct_fields__]


@pytest.mark.parametrize("kind", sorted(SAID | CONTROL | PARTS, key=lambda kind: kind.__name__))
def test_the_page_has_every_field_of_every_message_in_order(kind):
    assert documented_arrays()[kind.__name__] == fields(kind)


def test_the_page_has_nothing_that_is_not_there():
    assert set(documented_arrays()) == {kind.__name__ for kind in SAID | CONTROL | PARTS}


@pytest.mark.parametrize("name", MAPS)
def test_the_page_has_every_key_of_the_maps(name):
    assert documented_map(name) == fields(MAPS[name])


def test_the_page_has_the_defaults_of_sampling():
    for _, *table in [table for table in tables() if table[0][:3] == ["key", "type", "default"]]:
        defaults = messages.Sampling()
        for key, _, default, _ in table:
            assert DEFAULTS[default] == getattr(defaults, key), key


def test_the_page_has_the_edges_of_the_histograms():
    for kind, buckets in (("time to", METRIC_BUCKETS_S), ("of them", messages.LOAD_BUCKETS_S)):
        edges = re.search(kind + r".*: counts up to ([\d., ]+) s", PAGE)[1]
        assert tuple(map(float, edges.split(", "))) == buckets


def test_the_client_has_the_protocols_numbers():
    assert codec.PROTOCOL_VERSION == wire.PROTOCOL_VERSION
    assert codec.FRAME_BYTES_MAX == wire.FRAME_BYTES_MAX
    assert list(session._METRICS_FIELDS) == [name for name, _ in fields(messages.AdapterMetrics)]
    assert list(session._LOAD_FIELDS) == [name for name, _ in fields(messages.LoadMetrics)]
    assert list(session._TENANT_FIELDS) == [name for name, _ in fields(messages.TenantMetrics)]
    assert list(session._DEFAULTS_FIELDS) == [n for n, _ in fields(messages.DefaultsSummary)]
    assert list(events.Model._fields) == list(messages.ModelEntry.__struct_fields__)
    assert list(events.Adapter._fields) == list(messages.AdapterState.__struct_fields__)
    # A Finished is an End whose sequence has become a choice.
    assert list(events.Finished._fields)[1:] == list(messages.End.__struct_fields__)[1:]


def test_the_page_has_the_range_of_scales():
    limit = re.search(r"A scale is within ([\d,]+) of 0", PAGE)[1]
    assert float(limit.replace(",", "")) == messages.LORA_SCALE_MAX


def test_the_page_has_the_range_of_priorities():
    low, high = re.search(r"priority \| int \| (-?\d+) \.\. (\d+) ", PAGE).groups()
    assert (int(low), int(high)) == (-messages.PRIORITY_MAX, messages.PRIORITY_MAX)
