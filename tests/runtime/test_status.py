import io
import os

import pytest

from weft.runtime.progress import ProgressDisplay
from weft.runtime.status import Failed, Progress, Ready, StatusPipe, StatusReader


@pytest.fixture
def pipe():
    read_fd, write_fd = os.pipe()
    yield read_fd, StatusPipe(write_fd)
    os.close(read_fd)
    os.close(write_fd)


def test_statuses_arrive_whatever_pieces_the_pipe_cuts_them_into(pipe):
    read_fd, status = pipe
    said = [Progress("loading", 0.5), Ready("http://a"), Ready(), Failed("no\nmodel", True)]
    for each in said:
        status.say(each)
    reader, heard = StatusReader(), []
    for byte in os.read(read_fd, 65536):
        heard += reader.feed(bytes([byte]))
    assert heard == said


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_one_line_that_is_wiped_at_the_end():
    out = Terminal()
    display = ProgressDisplay(out)
    display.show("runner0", Progress("loading weights", 0.5))
    display.show("tokenizer", Progress("loading", 0.0))
    assert out.getvalue().endswith("\rrunner0: loading weights 50%; tokenizer: loading 0%\r")
    display.done("runner0")
    display.done("tokenizer")
    assert out.getvalue().endswith("\r" + " " * len("tokenizer: loading 0%") + "\r")
    assert "\n" not in out.getvalue()


def test_a_log_gets_a_line_for_each_new_thing_and_each_quarter():
    out = io.StringIO()
    display = ProgressDisplay(out)
    for percent in range(101):
        display.show("runner0", Progress("loading weights", percent / 100))
    display.show("runner0", Progress("warming up", 0.0))
    assert out.getvalue().splitlines() == [
        *(f"runner0: loading weights {percent}%" for percent in (0, 25, 50, 75, 100)),
        "runner0: warming up 0%",
    ]
