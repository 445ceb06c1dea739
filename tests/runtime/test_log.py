import logging
import re
import sys

import pytest

from weft.runtime import log


@pytest.fixture(autouse=True)
def _restore_logging():
    root, weft = logging.getLogger(), logging.getLogger("weft")
    before = (root.handlers[:], root.level, weft.level)
    yield
    logging.captureWarnings(False)
    root.handlers[:], root.level = before[0], before[1]
    weft.setLevel(before[2])


def test_a_line_says_when_who_how_bad_what_and_which_request(capsys):
    log.setup("scheduler", "info")
    logging.getLogger("weft.actors").info("accepted %d", 3, extra={"request": "5f0c"})
    pattern = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} scheduler info accepted 3 request=5f0c\n"
    assert re.fullmatch(pattern, capsys.readouterr().err)


def test_the_level_is_the_configurations(capsys):
    log.setup("scheduler", "warning")
    logging.getLogger("weft.actors").info("quiet")
    logging.getLogger("weft.actors").warning("loud")
    assert capsys.readouterr().err.count("\n") == 1


def test_libraries_are_heard_from_a_warning_on(capsys):
    log.setup("scheduler", "debug")
    logging.getLogger("library").info("chatter")
    logging.getLogger("weft").debug("ours")
    assert capsys.readouterr().err.endswith("scheduler debug ours\n")


def test_a_traceback_follows_its_line(capsys):
    log.setup("scheduler", "info")
    try:
        raise ValueError("numbers")
    except ValueError:
        logging.getLogger("weft").error("broken", exc_info=sys.exc_info())
    text = capsys.readouterr().err
    assert "error broken\nTraceback" in text
    assert "ValueError: numbers" in text
