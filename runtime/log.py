"""Logging: one line for each event, on stderr, the same in every process.

A line about a request ends in ``request=<id>``, so that ``grep <id>`` tells one request's story
across all processes: ``log.info("accepted", extra={"request": request_id})``.
"""

from __future__ import annotations

import logging
import sys
import time


def setup(role: str, level: str) -> None:
    """Send every logger of this process to stderr. ``level`` is the configuration's word."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(role))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries' own chatter is of no use below a warning; weft's loggers follow the option.
    root.setLevel(max(logging.WARNING, _level(level)))
    logging.getLogger("weft").setLevel(_level(level))
    logging.captureWarnings(True)


def _level(name: str) -> int:
    return logging.getLevelNamesMapping()[name.upper()]


class _Formatter(logging.Formatter):
    """``2026-01-31T12:00:00.123 scheduler info accepted request=5f0c...``."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.created))
        line = f"{seconds}.{int(record.msecs):03d} {self._role} {record.levelname.lower()} "
        line += record.getMessage()
        request = record.__dict__.get("request")
        if request is not None:
            line += f" request={request}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line
