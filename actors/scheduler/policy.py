"""Who joins the next step. Pure functions of values: no clock, no randomness, no state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

# Later requests that may take an adapter slot before one that waits for a slot. Enough to let warm
# adapters finish their bursts, few enough that a cold one waits for about one batch.
OVERTAKEN_MAX = 64

# Steps that an overtaken request waits for a slot to come free by itself, before the adapter that
# has run longest is made to give up its slot: about the length of a short answer.
ROTATE_STEPS = 64

# Waiting requests looked at in one step. Bounds the scheduler's time when most lack a slot.
LOOK_AHEAD = 256


class Candidate(NamedTuple):
    """A waiting sequence, reduced to what admission depends on."""

    key: int
    adapter: str | None
    overtaken: int  # later ones that took a slot while this one lacked one
    is_ready: bool  # nothing of its own past is still on its way


class Need(NamedTuple):
    """What a sequence takes if it starts now."""

    pages: int
    tokens: int  # to compute before it samples
    tokens_min: int  # of these, at least so many in its first step


class Room(NamedTuple):
    """What is free before the step."""

    rows: int
    tokens: int
    pages: int
    slots: int  # adapters that may be on the device together
    pinned: frozenset[str]  # adapters that running sequences use


class Admission(NamedTuple):
    """What to do about the waiting sequences."""

    admitted: list[int]
    overtaken: list[int]  # lacked a slot while a later one with an adapter was admitted
    wanted: list[str]  # adapters to fetch to host memory, most urgent first
    starving: int | None  # the sequence, if any, that others may no longer overtake


def admit(
    waiting: Iterable[Candidate],
    room: Room,
    *,
    need: Callable[[int], Need],
    in_host: Callable[[str], bool],
) -> Admission:
    """Choose in arrival order.

    A sequence without tokens or pages ends the search: if smaller ones could pass it, a long prompt
    would wait for ever. One that lacks only its adapter is passed over: slots come free
    independently of pages, and one cold adapter must not stop the warm ones behind it. But once
    ``OVERTAKEN_MAX`` later ones have taken slots it is starving, and only base rows, which need no
    slot, may still pass.
    """
    rows, tokens, pages, slots, pinned = room
    used = set(pinned)
    result = Admission([], [], [], None)
    lacking: list[int] = []
    starving: int | None = None
    for seen, candidate in enumerate(waiting):
        if seen == LOOK_AHEAD or rows == 0 or tokens <= 0:
            break
        if not candidate.is_ready:
            continue
        adapter = candidate.adapter
        if adapter is not None:
            if not in_host(adapter):
                result.wanted.append(adapter)
                continue
            if adapter not in used and len(used) >= slots:
                lacking.append(candidate.key)
                if starving is None and candidate.overtaken >= OVERTAKEN_MAX:
                    starving = candidate.key
                continue
            if starving is not None:
                continue
        needed = need(candidate.key)
        if needed.pages > pages or needed.tokens_min > tokens:
            break
        if adapter is not None:
            used.add(adapter)
            result.overtaken.extend(lacking)
        rows -= 1
        tokens -= min(needed.tokens, tokens)
        pages -= needed.pages
        result.admitted.append(candidate.key)
    return result._replace(starving=starving)


def rotate(pinned_since: dict[str, int], step: int) -> str | None:
    """Return the adapter that must give up its slot for a starving one, if it is time.

    ``pinned_since`` maps each adapter in use to the step at which its slot was taken.
    """
    if not pinned_since:
        return None
    since, adapter = min((since, adapter) for adapter, since in pinned_since.items())
    return adapter if step - since >= ROTATE_STEPS else None
