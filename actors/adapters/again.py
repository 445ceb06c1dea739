"""Names of the configuration whose adapters could not be had when they were asked for."""

from __future__ import annotations

from typing import NamedTuple

# The first pause, and the longest: each is twice the one before.
FIRST_PAUSE_NS = 15_000_000_000
LONGEST_PAUSE_NS = 600_000_000_000


class _Pause(NamedTuple):
    source: str
    digest: str | None  # that its content must have
    length_ns: int
    until_ns: int


class Again:
    """When to try once more. A network that is down should cost nobody a restart."""

    def __init__(self) -> None:
        self._pauses: dict[str, _Pause] = {}  # by name
        self._last_ns: dict[str, int] = {}  # by name that is being tried: the pause before

    def failed(self, name: str, source: str, digest: str | None, now_ns: int) -> None:
        """Begin a pause, twice as long as the one before."""
        length_ns = min(2 * self._last_ns.pop(name, FIRST_PAUSE_NS // 2), LONGEST_PAUSE_NS)
        self._pauses[name] = _Pause(source, digest, length_ns, now_ns + length_ns)

    def due(self, now_ns: int) -> list[tuple[str, str, str | None]]:
        """Return names, sources and digests whose pause is over."""
        names = [name for name, pause in self._pauses.items() if pause.until_ns <= now_ns]
        pauses = {name: self._pauses.pop(name) for name in names}
        self._last_ns |= {name: pause.length_ns for name, pause in pauses.items()}
        return [(name, pause.source, pause.digest) for name, pause in pauses.items()]

    def forget(self, name: str) -> None:
        """Try no more: the name means something, or nothing any more."""
        self._pauses.pop(name, None)
        self._last_ns.pop(name, None)
