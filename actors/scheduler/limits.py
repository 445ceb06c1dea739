"""Limits of what a tenant or an adapter may take. Pure functions of values: time is an argument."""

from __future__ import annotations

from typing import NamedTuple

from weft.runtime.messages import Refused

# When whoever has too many requests under way should come back: one may have ended by then.
CONCURRENCY_RETRY_S = 1.0

_MINUTE_NS = 60_000_000_000


class Budget(NamedTuple):
    """Tokens that may be used: a minute's at most; they come back evenly.

    Below zero it is a debt: what an answer takes is not known before it has ended, so it is paid
    for while it runs, and nothing new is accepted until the debt has been made good.
    """

    tokens: float
    at_ns: int


def refilled(budget: Budget, now_ns: int, per_minute: int) -> Budget:
    """Return what there is now."""
    gained = (now_ns - budget.at_ns) * per_minute / _MINUTE_NS
    return Budget(min(float(per_minute), budget.tokens + gained), now_ns)


def wait_s(budget: Budget, tokens: int, per_minute: int) -> float:
    """Return how long until a request of so many prompt tokens may be accepted; 0: it may be now.

    One that is longer than a minute's tokens waits for all of them.
    """
    missing = min(tokens, per_minute) - budget.tokens
    return max(0.0, missing * 60 / per_minute)


class Excess(NamedTuple):
    """Why a limit refuses a request."""

    reason: str
    retry_after_s: float | None  # None: trying again would not help

    def refused(self, label: str, whose: str) -> Refused:
        """Return the message that tells the client; ``whose`` says whose limit it is."""
        if self.retry_after_s is None:
            return Refused(label, "invalid_value", f"n: {self.reason}", param="n")
        text = f"a limit, {whose}: {self.reason}"
        return Refused(label, "rate_limit_exceeded", text, retry_after_s=self.retry_after_s)


def concurrency_excess(live: int, asked: int, limit: int | None) -> Excess | None:
    """Say why ``asked`` more sequences beside ``live`` ones are too many, if they are."""
    if limit is None or live + asked <= limit:
        return None
    if asked > limit:
        return Excess(f"{asked} choices are more than may run at once ({limit}); lower n", None)
    return Excess(
        f"{live} requests are under way and at most {limit} may be; wait for one to end",
        CONCURRENCY_RETRY_S,
    )


def rate_excess(budget: Budget, tokens: int, limit: int) -> Excess | None:
    """Say why a request of so many prompt tokens comes too early, if it does."""
    seconds = wait_s(budget, tokens, limit)
    if seconds == 0:
        return None
    return Excess(
        f"the limit of {limit} tokens a minute is used up; try again in {seconds:.1f} s", seconds
    )
