"""The processes that compute each step together: they live as one, and as one they live again.

A collective cannot be mended: whoever has lost a rank is of no use, and may wait in a place that
nothing wakes it from. So all are killed, and started anew where only those of one life can meet.
(NCCL and gloo know no other way; it is "one for all" in Erlang's words.)
"""

from __future__ import annotations

from collections.abc import Sequence

from weft.runtime import pulse
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

    def __init__(
        self, roles: Sequence[str], *, watchdog_timeout_s: float, loading_timeout_s: float
    ) -> None:
        """``roles`` are by rank. The timeouts say how long it may not get on: up, and before."""
        self.roles = roles
        self.epoch = 0  # counts lives
        self.due_at: float | None = None  # when the next one begins
        self.looks_at: float | None = None  # when it is looked at next
        self.is_given_up = False  # there is no further life
        self._watchdog_timeout_s = watchdog_timeout_s
        self._loading_timeout_s = loading_timeout_s
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

    def begin(self, members: list[Child], now: float) -> None:
        """Take in the processes of a new life, by rank."""
        self._members = members
        self.due_at = None
        self._look_later(now)

    def heard(self, now: float) -> float | None:
        """Look who is ready; if it is up by that, return how long it was not."""
        if self.is_up or self.is_ending or not all(child.ready for child in self._members):
            return None
        self._ready_at = now
        self._look_later(now)
        return now - self._lost_at

    def stuck(self, now: float) -> Died | None:
        """Look at who must get on, if it is time to; return what is wrong."""
        if self.looks_at is None or now < self.looks_at or self.is_ending:
            return None
        self._look_later(now)
        # Ready, the first one needs all others; before that each does what takes long by itself.
        watched = [c for c in self._members[: 1 if self.is_up else None] if self._is_watched(c)]
        stuck = [child for child in watched if child.watch.look()]
        if not stuck:
            return None
        # Those who wait for it stopped later.
        child = max(stuck, key=lambda child: child.watch.looks)
        text = f"the process {child.role} has not got on for {self._timeout_s:g} s"
        if not self.is_up:
            text += f" while it was starting ({child.doing or 'it has said nothing yet'})"
        return Died(text, EXIT_BUG)

    def end(self, cause: Died) -> bool:
        """Kill all; return whether this is news."""
        is_news, self._cause = not self.is_ending, self._cause or cause
        self.looks_at = None
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
            self.give_up()
            text = f"{' and '.join(self.roles)} did not become ready in {STARTS_MAX} lives"
            raise Died(f"{text}; the last time: {cause}", EXIT_BUG)
        self.due_at = now + delay_s
        return delay_s

    def give_up(self) -> None:
        """End it for good."""
        self.is_given_up = True
        self.due_at = self.looks_at = self._cause = self._ready_at = None
        self._kill()

    @property
    def _timeout_s(self) -> float:
        return self._watchdog_timeout_s if self.is_up else self._loading_timeout_s

    def _look_later(self, now: float) -> None:
        self.looks_at = now + self._timeout_s / pulse.LOOKS

    def _is_watched(self, child: Child) -> bool:
        is_done = not self.is_up and child.ready is not None  # and waits for the others
        return child.is_alive and not child.is_stopping and not is_done

    def _kill(self) -> None:
        for child in self._members:
            child.kill()
