"""Who joins the next step. Pure functions of values: no clock, no randomness, no state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from typing import NamedTuple

# Later requests with an adapter that may start before one whose adapter would be one too many.
# Enough to let warm adapters finish their bursts, few enough that a cold one waits for about one
# batch.
OVERTAKEN_MAX = 64

# Steps that a starving request waits for an adapter to finish by itself, before the one that has
# run longest is made to give way: about the length of a short answer.
ROTATE_STEPS = 64

# Adapters that one step begins to load. They are copied while it is computed, and all should be
# there when the next one begins: a step of a model takes longer than copying a few of its adapters.
LOADS_MAX = 4

# Waiting requests looked at in one step. Bounds the scheduler's time when most lack their adapter.
LOOK_AHEAD = 256


class Candidate(NamedTuple):
    """A waiting sequence, reduced to what admission depends on."""

    key: int
    adapters: tuple[str, ...]  # none: the base
    overtaken: int  # later ones with adapters that started while there was no room for its own
    is_ready: bool  # nothing of its own past is still on its way


class Need(NamedTuple):
    """What a sequence takes if it starts now."""

    pages: int
    adapter_pages: tuple[int, ...]  # of each adapter, unless a running sequence uses it
    tokens: int  # to compute before it samples
    tokens_min: int  # of these, at least so many in its first step


class Room(NamedTuple):
    """What is free before the step."""

    rows: int
    tokens: int
    pages: int
    adapters: int  # that running sequences may use together
    pinned: Set[str]  # adapters that running sequences use
    resident: Set[str] = frozenset()  # adapters on the device, these among them
    loads: int = LOADS_MAX  # adapters that may be put there


class Admission(NamedTuple):
    """What to do about the waiting sequences."""

    admitted: list[int]
    overtaken: list[int]  # their adapters were too many, and a later one's was not
    lacking: list[int]  # whose adapters are not all at hand, most urgent first
    starving: int | None  # the sequence, if any, that others may no longer overtake


def admit(
    waiting: Iterable[Candidate],
    room: Room,
    *,
    need: Callable[[int], Need],
    is_at_hand: Callable[[str], bool],
) -> Admission:
    """Choose in the order given. An adapter is at hand on the device or in host memory.

    A sequence without tokens or pages ends the search: if smaller ones could pass it, a long prompt
    would wait for ever. One whose adapters are not all at hand, or would be too many, is passed
    over: one cold adapter must not stop the warm ones behind it. But once ``OVERTAKEN_MAX`` later
    ones with adapters have passed it is starving, and only base rows may still pass. One whose
    adapters are more loads than are left in this step waits for the next, in which it comes before
    others; if they are more than a step's, it gets a step's whole.

    A sequence gets all of its adapters or none: nobody holds one while it waits for another.
    """
    rows, tokens, pages, adapters_max, pinned, resident, loads_max = room
    loads = loads_max
    used = set(pinned)
    result = Admission([], [], [], None)
    too_many: list[int] = []
    starving: int | None = None
    for seen, candidate in enumerate(waiting):
        if seen == LOOK_AHEAD or rows == 0 or tokens <= 0:
            break
        if not candidate.is_ready:
            continue
        adapters = candidate.adapters
        if not all(map(is_at_hand, adapters)):
            result.lacking.append(candidate.key)
            continue
        added = [adapter for adapter in adapters if adapter not in used]
        if len(used) + len(added) > adapters_max and added:
            too_many.append(candidate.key)
            if starving is None and candidate.overtaken >= OVERTAKEN_MAX:
                starving = candidate.key
            continue
        if starving is not None and adapters:
            continue
        loaded = sum(adapter not in resident for adapter in added)
        if loaded > loads and not (loads == loads_max > 0):
            continue
        needed = need(candidate.key)
        pages_needed = needed.pages + sum(
            count
            for adapter, count in zip(adapters, needed.adapter_pages, strict=True)
            if adapter not in used
        )
        if pages_needed > pages or needed.tokens_min > tokens:
            break
        if adapters:
            loads = max(0, loads - loaded)
            used.update(added)
            result.overtaken.extend(too_many)
        rows -= 1
        tokens -= min(needed.tokens, tokens)
        pages -= pages_needed
        result.admitted.append(candidate.key)
    return result._replace(starving=starving)


class NeverFits(Exception):
    """A sequence would not even fit alone; the message says what to change."""


def output_max(prompt_tokens: int, adapter_pages: int, *, pages: int, page_tokens: int) -> int:
    """Return how many tokens may follow a prompt when nothing but its adapters is there.

    Raises ``NeverFits``.
    """
    room = (pages - adapter_pages) * page_tokens
    if prompt_tokens < room:
        return room - prompt_tokens
    more = "raise kv_cache_memory_mib (on a CPU) or gpu_memory_utilization (on a GPU)"
    memory = f"memory has {pages} pages of {page_tokens} tokens"
    if room <= 0:
        raise NeverFits(f"adapters take {adapter_pages} pages and {memory}; {more}")
    taken = f", of which adapters take {adapter_pages}" if adapter_pages else ""
    raise NeverFits(
        f"a prompt of {prompt_tokens} tokens does not fit: {memory}{taken}; shorten it, or {more}"
    )


def rotate(pinned_since: dict[str, int], step: int) -> str | None:
    """Return the adapter that must give way to a starving one, if it is time.

    ``pinned_since`` maps each adapter in use to the step since which it has been.
    """
    if not pinned_since:
        return None
    since, adapter = min((since, adapter) for adapter, since in pinned_since.items())
    return adapter if step - since >= ROTATE_STEPS else None
