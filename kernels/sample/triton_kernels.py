"""The kernel of triton.py: one program draws one row's token.

A token's *depth* is how far its logit lies below the highest, divided by the temperature, as the
bits of a float32 that is not negative; these are ordered as the floats are. Its *weight* is
``exp(-depth)`` in units of 2 ** -44, rounded down to an integer. Integers sum to the same in any
order, so no sum here depends on how a row is cut among threads.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Depths from which on weights are zero, as bits: 30.5 > 44 * log(2).
_WEIGHTLESS = tl.constexpr(0x41F40000)
_WEIGHT_ONE = tl.constexpr(float(2**44))
_INFINITE = tl.constexpr(0x7F800000)
# Probes in the middle of depths as numbers, which suits logits, before those in the middle of
# their bits, which end after 31 whatever the logits are.
_EVEN_PROBES = tl.constexpr(8)
# Below it float32 loses precision: sampler.py's TEMPERATURE_MIN.
_TEMPERATURE_MIN = tl.constexpr(2.0**-126)


@triton.jit
def _depths(row_ptr, token, highest, temperature, VOCABULARY: tl.constexpr):
    """Return the depths of some tokens; it is infinite for those that do not exist."""
    logits = tl.load(row_ptr + token, mask=token < VOCABULARY, other=float("-inf"))
    # Divided as torch divides: two logits that it makes equal are equal here too.
    return tl.abs(tl.div_rn(logits - highest, temperature)).to(tl.int32, bitcast=True)


@triton.jit
def _weights(depth):
    return (tl.exp(-depth.to(tl.float32, bitcast=True)) * _WEIGHT_ONE).to(tl.int64)


@triton.jit
def _scan(row_ptr, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """Return the highest logit, its first token, and whether some logit is not a number."""
    lane = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    best_token = lane
    nans = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, VOCABULARY, BLOCK):
        token = start + lane
        logits = tl.load(row_ptr + token, mask=token < VOCABULARY, other=float("-inf"))
        is_better = logits > best
        best = tl.where(is_better, logits, best)
        best_token = tl.where(is_better, token, best_token)
        nans += (logits != logits).to(tl.int32)
    highest = tl.max(best, axis=0)
    first = tl.min(tl.where(best == highest, best_token, VOCABULARY), axis=0)
    return highest, first, tl.sum(nans, axis=0) > 0


@triton.jit
def _measure(
    row_ptr, highest, temperature, bound, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Return how many tokens are no deeper than ``bound``, and what they weigh together."""
    counts = tl.zeros((BLOCK,), tl.int32)
    weights = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, VOCABULARY, BLOCK):
        depth = _depths(row_ptr, start + tl.arange(0, BLOCK), highest, temperature, VOCABULARY)
        counts += (depth <= bound).to(tl.int32)
        weights += tl.where(depth <= bound, _weights(depth), 0)
    return tl.sum(counts, axis=0), tl.sum(weights, axis=0)


@triton.jit
def _collect(
    chosen_ptr, row_ptr, highest, temperature, low, high,
    VOCABULARY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the depths above ``low`` and up to ``high`` side by side."""
    count = 0
    for start in range(0, VOCABULARY, BLOCK):
        depth = _depths(row_ptr, start + tl.arange(0, BLOCK), highest, temperature, VOCABULARY)
        is_chosen = ((depth > low) & (depth <= high)).to(tl.int32)
        place = count + tl.cumsum(is_chosen, axis=0) - is_chosen
        tl.store(chosen_ptr + place, depth, mask=is_chosen != 0)
        count += tl.sum(is_chosen, axis=0)
    tl.debug_barrier()
    return count


@triton.jit
def _select(
    chosen_ptr, row_ptr, highest, temperature, goal, high, high_count,
    BY_WEIGHT: tl.constexpr, CHOSEN: tl.constexpr, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Find the least depth whose tokens, with all above them, are or weigh at least ``goal``.

    Args:
        goal: positive; reached at ``high``.
        high: where ``high_count`` tokens are no deeper.

    Returns:
        The depth, and the count and the weight of the tokens that are less deep.
    """
    low = tl.full((), -1, tl.int32)
    high = high.to(tl.int32)
    count = tl.full((), 0, tl.int32)  # up to low
    weight = tl.full((), 0, tl.int64)
    probes = 0
    # The whole row is read for each probe, until what is left fits one tile.
    while (high - low > 1) & (high_count - count > CHOSEN):
        middle = low + (high - low) // 2
        if probes < _EVEN_PROBES:
            depths = tl.maximum(low, 0).to(tl.float32, bitcast=True)
            depths += high.to(tl.float32, bitcast=True)
            even = (depths * 0.5).to(tl.int32, bitcast=True)
            middle = tl.minimum(tl.maximum(even, low + 1), high - 1)
        probes += 1
        found, found_weight = _measure(
            row_ptr, highest, temperature, middle, VOCABULARY, BLOCK
        )  # fmt: skip
        is_enough = found >= goal
        if BY_WEIGHT:
            is_enough = found_weight >= goal
        high = tl.where(is_enough, middle, high)
        high_count = tl.where(is_enough, found, high_count)
        low = tl.where(is_enough, low, middle)
        count = tl.where(is_enough, count, found)
        weight = tl.where(is_enough, weight, found_weight)

    if high - low > 1:
        chosen = _collect(
            chosen_ptr, row_ptr, highest, temperature, low, high, VOCABULARY, BLOCK
        )  # fmt: skip
        place = tl.arange(0, CHOSEN)
        depth = tl.load(chosen_ptr + place, mask=place < chosen, other=_INFINITE)
        weights = _weights(depth)
        base, base_weight = count, weight
        while high - low > 1:
            middle = low + (high - low) // 2
            found = base + tl.sum((depth <= middle).to(tl.int32), axis=0)
            found_weight = base_weight + tl.sum(tl.where(depth <= middle, weights, 0), axis=0)
            is_enough = found >= goal
            if BY_WEIGHT:
                is_enough = found_weight >= goal
            high = tl.where(is_enough, middle, high)
            low = tl.where(is_enough, low, middle)
            count = tl.where(is_enough, count, found)
            weight = tl.where(is_enough, weight, found_weight)
        tl.debug_barrier()  # before the memory is used again
    return high, count, weight


@triton.jit
def _draw(
    row_ptr, highest, temperature, edge, edge_tokens, target,
    VOCABULARY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the first token up to and with which the kept ones weigh more than ``target``."""
    lane = tl.arange(0, BLOCK)
    start = 0
    result = tl.full((), VOCABULARY, tl.int32)
    weight = tl.full((), 0, tl.int64)
    on_edge = tl.full((), 0, tl.int32)
    while (start < VOCABULARY) & (result == VOCABULARY):
        depth = _depths(row_ptr, start + lane, highest, temperature, VOCABULARY)
        is_edge = (depth == edge).to(tl.int32)
        rank = on_edge + tl.cumsum(is_edge, axis=0)  # counted from one
        kept = (depth < edge) | ((is_edge != 0) & (rank <= edge_tokens))
        sums = weight + tl.cumsum(tl.where(kept, _weights(depth), 0), axis=0)
        result = tl.min(tl.where(sums > target, start + lane, VOCABULARY), axis=0)
        weight = tl.max(sums, axis=0)
        on_edge += tl.sum(is_edge, axis=0)
        start += BLOCK
    return result


@triton.jit
def noise(seed, choice, position):
    """Return the 53 random bits of ``philox.uniform`` as an integer."""
    position = position.to(tl.uint32)
    zero = position * 0
    high, low, _, _ = tl.philox(seed, position, choice.to(tl.uint32), zero, zero)
    return ((high >> 5).to(tl.uint64) << 26) | (low >> 6).to(tl.uint64)


@triton.jit
def _filter(
    chosen_ptr, row_ptr, highest, temperature, floor, k, p,
    CHOSEN: tl.constexpr, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the depth at the edge of what is kept, how many tokens of it are, and all's weight.

    Tokens that are less deep are kept, and the first ones at the edge in the order of their ids.
    """
    last = tl.minimum(tl.abs(floor).to(tl.int32, bitcast=True), _WEIGHTLESS)
    # ``above`` tokens are less deep than the edge, and weigh ``weight``.
    above, weight = _measure(row_ptr, highest, temperature, last, VOCABULARY, BLOCK)
    edge = last + 1
    edge_tokens = tl.full((), 0, tl.int32)
    total = weight
    if (k > 0) & (k < above):
        edge, above, weight = _select(
            chosen_ptr, row_ptr, highest, temperature, k, last, above,
            False, CHOSEN, VOCABULARY, BLOCK,
        )  # fmt: skip
        edge_tokens = k - above
        total = weight + edge_tokens * _weights(edge)
    if p < 1:
        limit = (p.to(tl.float64) * total.to(tl.float64)).to(tl.int64)
        limit = tl.maximum(tl.minimum(limit, total), 1)
        if weight >= limit:
            edge, above, weight = _select(
                chosen_ptr, row_ptr, highest, temperature, limit, edge - 1, above,
                True, CHOSEN, VOCABULARY, BLOCK,
            )  # fmt: skip
        # What is kept reaches the limit with its last token, and not before.
        edge_weight = _weights(edge)
        edge_tokens = ((limit - weight + edge_weight - 1) // edge_weight).to(tl.int32)
        total = weight + edge_tokens * edge_weight
    return edge, edge_tokens, total


@triton.jit
def sample_kernel(
    tokens_ptr, finite_ptr, chosen_ptr, logits_ptr,
    temperature_ptr, floor_ptr, k_ptr, p_ptr, seeds_ptr, choices_ptr, positions_ptr, row_stride,
    CHOSEN: tl.constexpr, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Draw the token of one row."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    highest, token, has_nan = _scan(row_ptr, VOCABULARY, BLOCK)
    infinity = float("inf")
    is_finite = (highest > -infinity) & (highest < infinity) & (has_nan == 0)
    temperature = tl.load(temperature_ptr + row)
    tl.store(finite_ptr + row, is_finite)
    if is_finite & (temperature > 0):
        temperature = tl.maximum(temperature, _TEMPERATURE_MIN)
        edge, edge_tokens, total = _filter(
            chosen_ptr + row * CHOSEN, row_ptr, highest, temperature,
            tl.load(floor_ptr + row), tl.load(k_ptr + row).to(tl.int32), tl.load(p_ptr + row),
            CHOSEN, VOCABULARY, BLOCK,
        )  # fmt: skip
        bits = noise(
            tl.load(seeds_ptr + row), tl.load(choices_ptr + row), tl.load(positions_ptr + row)
        )  # fmt: skip
        # The noise as a share of the total, rounded down: less than the total.
        target = tl.umulhi(bits << 11, total.to(tl.uint64)).to(tl.int64)
        token = _draw(
            row_ptr, highest, temperature, edge, edge_tokens, target, VOCABULARY, BLOCK
        )  # fmt: skip
    tl.store(tokens_ptr + row, tl.where(is_finite, token, 0).to(tl.int64))
