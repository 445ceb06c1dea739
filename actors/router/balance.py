"""Which replica a request goes to. Pure functions of values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from weft.runtime.messages import Generate

Method = Literal["adapter_aware", "total_tokens", "round_robin"]

# What an answer is expected to take at most: ``max_tokens`` is often the whole context, and an
# answer seldom.
OUTPUT_TOKENS_EXPECTED = 256

# How much more than the least loaded replica another one may have and still be chosen for what it
# has of a request: this part of it, and a step's tokens.
EXCESS_DIVISOR = 4


class Load(NamedTuple):
    """What is known of one replica when a request comes."""

    tokens: int  # that its requests are expected to take, from their first to their last
    missing: int  # adapters of the request that are neither on its device nor about to be
    cached: int  # tokens of the request's prompt that it has computed lately
    adapters: int  # on its device


def expected_tokens(generate: Generate) -> int:
    """Return what a request will take of a replica: its prompt, and an answer for each choice."""
    answer = min(generate.max_tokens, OUTPUT_TOKENS_EXPECTED)
    return len(generate.prompt) + generate.choices * answer


def tokens_max(least: int, slack: int) -> int:
    """Return up to how many tokens a replica is in balance with the one that has the least."""
    return least + least // EXCESS_DIVISOR + slack


def choose(
    method: Method, loads: Sequence[Load], allowed: Iterable[int], *, turn: int, slack: int
) -> int:
    """Return the index of the replica for one request, one of those allowed.

    ``turn`` counts requests: whoever is as good as others has its turn. ``slack`` is in tokens: so
    many more than the least loaded replica has are no reason to leave the one with the adapters, or
    the one that has computed the prompt's beginning.
    """
    count = len(loads)
    candidates = sorted(allowed, key=lambda index: (index - turn) % count)
    match method:
        case "round_robin":
            return candidates[0]
        case "total_tokens":
            return min(candidates, key=lambda index: loads[index].tokens)
        case "adapter_aware":
            bound = tokens_max(min(loads[index].tokens for index in candidates), slack)
            near = [index for index in candidates if loads[index].tokens <= bound]
            return min(
                near,
                key=lambda i: (
                    loads[i].missing,
                    -loads[i].cached,
                    loads[i].tokens,
                    loads[i].adapters,
                ),
            )
