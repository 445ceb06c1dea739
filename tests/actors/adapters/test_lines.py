"""Names that are being read, and who waits for each."""

import pytest

from weft.actors.adapters.asked import Asked
from weft.actors.adapters.errors import BadAdapter, GivenUp
from weft.actors.adapters.lines import Lines
from weft.actors.adapters.loader import Loaded
from weft.runtime.messages import ListAdapters, UnloadAdapter


class ScriptedLoader:
    """Counts what it is asked for, and gives up what it may."""

    def __init__(self):
        self.started = []
        self.can_cancel = True

    def start(self, source, *, with_file):
        self.started.append((source, with_file))
        return len(self.started)

    def cancel(self, ticket):
        return self.can_cancel


@pytest.fixture
def loader():
    return ScriptedLoader()


@pytest.fixture
def lines(loader):
    lines = Lines(loader)
    yield lines
    lines.check()


def asked(name):
    return Asked("client", UnloadAdapter("l", name))


def test_who_waits_for_a_name_is_told_with_what_was_read(lines, loader):
    lines.read("a", "/a", 1000)
    lines.read("b", "/b", 2000, asked("b"))
    assert loader.started == [("/a", False), ("/b", True)]
    waiting = [asked("b"), Asked("client", ListAdapters("l", "b"))]
    for each in waiting:
        lines.wait("b", each)
    assert (len(lines), lines.waiting) == (2, 2)
    reading, line = lines.finish(Loaded(2, BadAdapter("spoilt")), 9000)
    assert (reading.name, reading.source, list(line)) == ("b", "/b", waiting)
    assert "b" not in lines
    assert "a" in lines
    assert lines.counters() == {
        "reads_total": 1, "read_failures_total": 1, "read_us_total": 7,
    }  # fmt: skip


def test_what_somebody_else_had_read_is_none_of_theirs(lines):
    lines.read("a", "/a", 0)
    assert lines.finish(Loaded(7, GivenUp()), 0) is None
    assert lines.counters()["reads_total"] == 0


@pytest.mark.parametrize(
    ("can_cancel", "others", "is_over"), [(True, 0, True), (True, 1, False), (False, 0, False)]
)
def test_a_name_is_over_if_its_reading_ends_and_nobody_waits(
    lines, loader, can_cancel, others, is_over
):
    loader.can_cancel = can_cancel
    lines.read("a", "/a", 0)
    for _ in range(others):
        lines.wait("a", asked("a"))
    assert lines.cancel("a") == is_over
