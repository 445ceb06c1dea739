"""Names whose sources are being read, and the line of operations that waits for each."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from weft.actors.adapters.asked import Asked
from weft.actors.adapters.errors import BadAdapter
from weft.actors.adapters.loader import Loaded, Loader


class Reading(NamedTuple):
    """A name whose source is being read: for a client, or because it is to be known (None)."""

    name: str
    source: str
    asked: Asked | None
    started_ns: int
    digest: str | None  # that its content must have, if one was told


class Lines:
    """What is done with one name is done in the order in which it was asked for.

    Invariant, checked by ``check``: a name has a line exactly while its source is being read.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._reading: dict[int, Reading] = {}  # by ticket
        self._lines: dict[str, deque[Asked]] = {}  # by name
        self._counts = dict.fromkeys(("reads", "read_failures", "read_us"), 0)

    def __len__(self) -> int:
        """Names that are being read."""
        return len(self._reading)

    def __contains__(self, name: str) -> bool:
        return name in self._lines

    @property
    def waiting(self) -> int:
        """Operations that wait."""
        return sum(map(len, self._lines.values()))

    def read(
        self,
        name: str,
        source: str,
        now_ns: int,
        asked: Asked | None = None,
        *,
        digest: str | None = None,
    ) -> None:
        """Begin to read the source of a name; ``asked`` gets its file as well."""
        assert name not in self._lines
        self._lines[name] = deque()
        ticket = self._loader.start(source, with_file=asked is not None)
        self._reading[ticket] = Reading(name, source, asked, now_ns, digest)

    def wait(self, name: str, asked: Asked) -> None:
        """Do this when the name has been read, and what was asked for before has been done."""
        self._lines[name].append(asked)

    def finish(self, loaded: Loaded, now_ns: int) -> tuple[Reading, deque[Asked]] | None:
        """Return what has been read, and who waits for it; None: it was for somebody else."""
        reading = self._reading.pop(loaded.ticket, None)
        if reading is None:
            return None
        self._counts["reads"] += 1
        self._counts["read_us"] += (now_ns - reading.started_ns) // 1000
        self._counts["read_failures"] += isinstance(loaded.result, BadAdapter)
        return reading, self._lines.pop(reading.name)

    def cancel(self, name: str) -> bool:
        """End what is being read for a name, if that can be; return whether nobody waits then."""
        [ticket] = [ticket for ticket, reading in self._reading.items() if reading.name == name]
        return self._loader.cancel(ticket) and not self._lines[name]

    def counters(self) -> dict[str, float]:
        """Return how much was read, how long that took, and how often it failed."""
        return {f"{name}_total": count for name, count in self._counts.items()}

    def check(self) -> None:
        """Assert the invariant."""
        names = [reading.name for reading in self._reading.values()]
        assert sorted(names) == sorted(self._lines), (names, self._lines)
