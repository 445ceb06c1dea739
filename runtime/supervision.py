"""The processes that compute each step together: they live as one, and as one they live again.

A collective cannot be mended: whoever has lost a rank is of no use, and may wait in a place that
nothing wakes it from. So all are killed, and started anew where only those of one life can meet.
(NCCL and gloo know no other way; it is "one for all" in Erlang's words.)
"""

from __future__ import annotations

from collections.abc import Sequence

from weft.runtime.child import Child, Died
from weft.runtime.process import EXIT_BUG

# Lives in a row that end before they are ready, until nobody believes in the next one. The first
# life of a run has one attempt: whoever starts it wants to know.
STARTS_MAX = 3

# A second death follows the first one soon if it has the same cause: then it is waited a while,
# twice as long each time.
DELAY_MIN_S = 0.1
DELAY_MAX_S = 5.0

# A life of this length has nothing to do with deaths before it.
CALM_S = 60.0


class Restarts:
    """When a group is started again. Clocks are the caller's."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._unready_in_a_row = 0

    def died(self, *, ready_s: float | None) -> float | None:
        """Return how long to wait before the next life; None: there is none.

        ``ready_s`` says how long the last one was ready, None if it never was.
        """
        self._unready_in_a_row = self._unready_in_a_row + 1 if ready_s is None else 0
        if self._unready_in_a_row == STARTS_MAX:
            return None
        if ready_s is not None and ready_s >= CALM_S:
            self._in_a_row = 0
        self._in_a_row += 1
        if self._in_a_row == 1:
            return 0.0
        # The exponent is bounded: a float cannot hold every power of two.
        return min(DELAY_MAX_S, DELAY_MIN_S * 2.0 ** min(self._in_a_row - 2, 16))


class Group:
    """The lives of one group, for a launcher that does as it is told. Times are in seconds."""

    def __init__(self, roles: Sequence[str]) -> None:
        """``roles`` are by rank."""
        self.roles = roles
        self.epoch = 0  # counts lives
        self.due_at: float | None = None  # when the next one begins
        self._cause: Died | None = None  # of the end of this one
        self._members: list[Child] = []
        self._restarts = Restarts()
        self._ready_at: float | None = None
        self._lost_at = 0.0

    @property
    def is_up(self) -> bool:
        """Whether it computes."""
        return self._ready_at is not None

    @property
    def is_ending(self) -> bool:
        """Whether its processes are being killed, for another life."""
        return self._cause is not None

    @property
    def is_gone(self) -> bool:
        """Whether every process of the last life has ended."""
        return not any(child.is_alive for child in self._members)

    def begin(self, members: list[Child]) -> None:
        """Take in the processes of a new life, by rank."""
        self._members = members
        self.due_at = None

    def heard(self, now: float) -> float | None:
        """Look who is ready; if it is up by that, return how long it was not."""
        if self.is_up or self.is_ending or not all(child.ready for child in self._members):
            return None
        self._ready_at = now
        return now - self._lost_at

    def stuck(self) -> str | None:
        """Return the rank that has not got on for too long: the first one needs all others."""
        if not self.is_up or self.is_ending:
            return None
        first = self._members[0]
        is_watched = first.is_alive and not first.is_stopping
        return first.role if is_watched and first.watch.look() else None

    def end(self, cause: Died) -> bool:
        """Kill all; return whether this is news."""
        is_news, self._cause = not self.is_ending, self._cause or cause
        self._kill()
        return is_news

    def ended(self, now: float) -> float:
        """Return in how many seconds the next life begins. All have ended.

        Raises ``Died`` if there is none.
        """
        assert self._cause is not None
        assert self.is_gone
        cause, self._cause = self._cause, None
        ready_s = None
        if self._ready_at is not None:
            ready_s, self._lost_at, self._ready_at = now - self._ready_at, now, None
        delay_s = self._restarts.died(ready_s=ready_s)
        if delay_s is None:
            text = f"{' and '.join(self.roles)} did not become ready in {STARTS_MAX} lives"
            raise Died(f"{text}; the last time: {cause}", EXIT_BUG)
        self.due_at = now + delay_s
        return delay_s

    def give_up(self) -> None:
        """End it for good."""
        self.due_at = self._cause = self._ready_at = None
        self._kill()

    def _kill(self) -> None:
        for child in self._members:
            child.kill()
