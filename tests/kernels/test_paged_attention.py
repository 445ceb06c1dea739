from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from weft.kernels.paged_attention import cpu, padded, reference

NAN = float("nan")
NO_PAGE = 1_000_000  # reading it would fail

needs_compiler = pytest.mark.skipif(cpu.library() is None, reason="no C compiler")


@dataclass
class Case:
    """Rows of a mixed step, their whole keys and values, and the pages that hold them."""

    counts: list[int]  # queries of each row: the last ones of its tokens
    lengths: list[int]  # tokens of each row
    q: Tensor  # [T, heads, d]
    keys: list[Tensor]  # of each row, [length, kv_heads, d]
    values: list[Tensor]
    k_cache: Tensor
    v_cache: Tensor
    page_table: np.ndarray
    page_tokens: int

    @property
    def starts(self):
        return np.concatenate(([0], np.cumsum(self.counts)))

    @property
    def positions(self):
        spans = zip(self.counts, self.lengths, strict=True)
        return np.concatenate([np.arange(length - count, length) for count, length in spans])

    @property
    def scale(self):
        return self.q.shape[-1] ** -0.5


def made(rows, *, heads=4, kv_heads=2, size=16, page_tokens=4):
    """Rows of (queries, tokens) on scattered pages; whatever no row owns is NaN."""
    torch.manual_seed(0)
    counts, lengths = [count for count, _ in rows], [length for _, length in rows]
    needed = [-(-length // page_tokens) for length in lengths]
    pages = sum(needed) + 3
    # Keys and values share a page, with a gap behind them.
    half = page_tokens * kv_heads * size
    memory = torch.full((pages, 2 * half + 7), NAN)
    k_cache, v_cache = (
        part.unflatten(1, (page_tokens, kv_heads, size))
        for part in (memory[:, :half], memory[:, half : 2 * half])
    )
    free = np.random.default_rng(0).permutation(pages)
    page_table = np.full((len(rows), max(needed) + 2), NO_PAGE, dtype=np.int64)
    keys, values = [], []
    for row, length in enumerate(lengths):
        own, free = free[: needed[row]], free[needed[row] :]
        page_table[row, : len(own)] = own
        keys.append(torch.randn(length, kv_heads, size))
        values.append(torch.randn(length, kv_heads, size))
        for position in range(length):
            place = own[position // page_tokens], position % page_tokens
            k_cache[place], v_cache[place] = keys[-1][position], values[-1][position]
    q = torch.randn(sum(counts), heads, size)
    return Case(counts, lengths, q, keys, values, k_cache, v_cache, page_table, page_tokens)


def with_reference(case, window):
    return reference.paged_attention(
        case.q,
        case.k_cache,
        case.v_cache,
        torch.from_numpy(case.page_table),
        torch.from_numpy(case.starts),
        torch.from_numpy(case.positions),
        scale=case.scale,
        window=window,
    )


def selected(case, rows):
    """Page table, starts and positions of some rows of a case, or of all, and their tokens."""
    rows = list(range(len(case.counts))) if rows is None else rows
    tokens = np.concatenate([np.arange(case.starts[row], case.starts[row + 1]) for row in rows])
    starts = np.concatenate(([0], np.cumsum([case.counts[row] for row in rows])))
    return (case.page_table[rows], starts, case.positions[tokens]), torch.from_numpy(tokens)


def with_native(case, window, rows=None):
    """Attend in C for some rows of a case, or for all of them."""
    layout, tokens = selected(case, rows)
    caches = case.k_cache, case.v_cache
    return cpu.Plan(*layout).attend(case.q[tokens], *caches, scale=case.scale, window=window)


def padded_plan(case, layout, windows):
    return padded.plan(
        *layout,
        case.page_tokens,
        windows=windows,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def with_padded(case, window, rows=None):
    """Attend in torch for some rows of a case, or for all of them."""
    layout, tokens = selected(case, rows)
    plan = padded_plan(case, layout, {window, None})
    return plan.attend(case.q[tokens], case.k_cache, case.v_cache, scale=case.scale, window=window)


ATTEND = [with_padded, pytest.param(with_native, marks=needs_compiler)]


def definition(case, window):
    """Each query by itself over plain lists of keys: torch's attention without any mask."""
    out = torch.empty_like(case.q)
    group = case.q.shape[1] // case.k_cache.shape[2]
    for row, (begin, end) in enumerate(zip(case.starts[:-1], case.starts[1:], strict=True)):
        for token in range(begin, end):
            last = case.positions[token]
            seen = slice(0 if window is None else max(0, last - window + 1), last + 1)
            keys = case.keys[row][seen].repeat_interleave(group, dim=1).transpose(0, 1)
            values = case.values[row][seen].repeat_interleave(group, dim=1).transpose(0, 1)
            query = case.q[token][:, None]
            out[token] = F.scaled_dot_product_attention(query, keys, values)[:, 0]
    return out


ROWS = {
    "one-token": [(1, 1)],
    "decode": [(1, length) for length in (1, 2, 3, 4, 5, 16, 17, 63, 64, 65)],
    "whole-prompts": [(1, 1), (4, 4), (5, 5), (33, 33)],
    "chunks-after-prefixes": [(3, 4), (7, 20), (16, 64), (1, 40)],
    "mixed": [(1, 50), (9, 9), (1, 3), (13, 37), (1, 200), (60, 61), (2, 2)],
}
SHAPES = {
    "multi-head": {"heads": 2, "kv_heads": 2},
    "grouped": {"heads": 6, "kv_heads": 2, "size": 24, "page_tokens": 8},
    "multi-query": {"heads": 5, "kv_heads": 1, "size": 7, "page_tokens": 1},
    "odd-pages": {"page_tokens": 3},
}


@pytest.mark.parametrize("window", [None, 1, 6], ids="window-{}".format)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_reference_and_padded_agree_with_the_definition(rows, shape, window):
    case = made(rows, **shape)
    expected = definition(case, window)
    torch.testing.assert_close(with_reference(case, window), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(with_padded(case, window), expected, rtol=1e-5, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("window", [None, 1, 6], ids="window-{}".format)
@pytest.mark.parametrize(
    "shape",
    [
        {"heads": 2, "kv_heads": 2},
        {"heads": 14, "kv_heads": 2, "size": 64, "page_tokens": 16},
        {"heads": 5, "kv_heads": 1, "size": 48, "page_tokens": 1},
        {"heads": 24, "kv_heads": 2, "size": 32, "page_tokens": 3},
    ],
    ids=["multi-head", "half-billion", "multi-query", "many-to-one"],
)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_native_agrees_with_the_definition_and_a_row_is_bit_equal_alone(rows, shape, window):
    case = made(rows, **shape)
    together = with_native(case, window)
    torch.testing.assert_close(together, definition(case, window), rtol=1e-5, atol=1e-5)
    for row in range(len(case.counts)):
        own = slice(case.starts[row], case.starts[row + 1])
        assert with_native(case, window, [row]).equal(together[own])


@needs_compiler
def test_the_number_of_threads_changes_no_bit():
    case, before = (
        made([(1, 400), (30, 300), (1, 17)] * 3, heads=14, size=64),
        torch.get_num_threads(),
    )
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(with_native(case, None))
    torch.set_num_threads(before)
    assert all(result.equal(results[0]) for result in results)


@pytest.mark.parametrize("attend", ATTEND)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_bfloat16_pages_are_attended_to_as_the_numbers_they_hold(rows, attend):
    case = made(rows, heads=14, size=64)
    wide = case.k_cache.bfloat16().float(), case.v_cache.bfloat16().float()
    case.k_cache, case.v_cache = (halved(cache) for cache in (case.k_cache, case.v_cache))
    actual = attend(case, None)
    case.k_cache, case.v_cache = wide
    torch.testing.assert_close(actual, with_reference(case, None), rtol=1e-5, atol=1e-5)


def halved(cache):
    """The same numbers in bfloat16, and pages that still lie apart."""
    memory = torch.full((len(cache), cache[0].numel() + 9), NAN, dtype=torch.bfloat16)
    part = memory[:, : cache[0].numel()].unflatten(1, cache.shape[1:])
    return part.copy_(cache)


@pytest.mark.parametrize("attend", ATTEND)
def test_queries_may_be_parts_of_a_wider_projection(attend):
    case = made(ROWS["mixed"])
    expected = attend(case, None)
    wide = torch.full((len(case.q), 2 * case.q[0].numel() + 5), NAN)
    part = wide[:, 3 : 3 + case.q[0].numel()].unflatten(1, case.q.shape[1:])
    case.q = part.copy_(case.q)
    assert attend(case, None).equal(expected)


@needs_compiler
def test_a_native_query_is_bit_equal_whatever_chunk_it_is_in():
    whole = made([(37, 37)])
    expected = with_native(whole, None)
    for begin, end in ((0, 1), (1, 3), (3, 10), (10, 37), (36, 37)):
        part = made([(37, 37)])
        part.counts, part.lengths = [end - begin], [end]
        part.q = whole.q[begin:end]
        assert with_native(part, None).equal(expected[begin:end])


@needs_compiler
def test_large_scores_and_large_values_are_exact_enough():
    case = made([(1, 40), (9, 30)])
    case.q = case.q * 100
    torch.testing.assert_close(
        with_native(case, None), definition(case, None), rtol=1e-4, atol=1e-5
    )


def test_the_reference_takes_rows_without_queries():
    case = made([(2, 5), (0, 7), (1, 3)])
    torch.testing.assert_close(with_reference(case, None), definition(case, None))


def test_scale_multiplies_the_scores():
    case = made([(5, 9)])
    halved = made([(5, 9)])
    halved.q = case.q / 2
    plan = padded_plan(case, (case.page_table, case.starts, case.positions), {None})
    caches = case.k_cache, case.v_cache
    expected = padded.paged_attention(halved.q, *caches, plan, scale=1.0, window=None)
    actual = padded.paged_attention(case.q, *caches, plan, scale=0.5, window=None)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("attend", ATTEND)
def test_a_row_of_nan_reaches_no_other_row(attend):
    rows = [(1, 17), (4, 18), (1, 20), (3, 19), (1, 18)]
    case = made(rows)
    expected = attend(case, None)
    case.q[case.starts[2]] = NAN
    case.k_cache[case.page_table[3, 0]] = NAN
    case.v_cache[case.page_table[4, 1]] = NAN
    actual = attend(case, None)
    failed = slice(case.starts[2], None)
    assert actual[failed].isnan().all()
    assert actual[: case.starts[2]].equal(expected[: case.starts[2]])


def test_rows_that_share_pages_see_the_same_prefix():
    case = made([(1, 9), (1, 9)])
    case.page_table[1, :2] = case.page_table[0, :2]
    case.keys[1][:8], case.values[1][:8] = case.keys[0][:8], case.values[0][:8]
    torch.testing.assert_close(with_padded(case, None), definition(case, None))


@pytest.mark.parametrize("window", [None, 6], ids="window-{}".format)
def test_a_row_is_near_alone_and_among_others(window):
    """Near, not equal: how far a row is padded changes the order in which torch sums."""
    case = made(ROWS["mixed"])
    together = with_padded(case, window)
    for row in range(len(case.counts)):
        own = slice(case.starts[row], case.starts[row + 1])
        alone = with_padded(case, window, [row])
        torch.testing.assert_close(alone, together[own], rtol=1e-5, atol=1e-6)


def test_the_order_of_rows_does_not_matter():
    case = made(ROWS["mixed"])
    together = with_padded(case, None)
    reverse = list(reversed(range(len(case.counts))))
    backwards = with_padded(case, None, reverse)
    begin = 0
    for row in reverse:
        own = slice(case.starts[row], case.starts[row + 1])
        end = begin + case.counts[row]
        assert backwards[begin:end].equal(together[own])
        begin = end


def test_few_calls_serve_many_rows():
    """What the grouping is for: calls grow with the logarithm of the lengths."""
    case = made([(1, length) for length in range(1, 65)])
    plan = padded_plan(case, (case.page_table, case.starts, case.positions), {None})
    assert len(plan.groups) == 4  # up to 1, 4, 16 and 64 tokens
