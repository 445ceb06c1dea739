"""paged_attention in Triton against the definition: interpreted, or on a GPU if there is one."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.kernels.test_paged_attention import (
    NAN,
    ROWS,
    SHAPES,
    definition,
    made,
    selected,
)
from weft.kernels.paged_attention import reference
from weft.kernels.paged_attention.schedule import SPLIT_TOKENS, cut, tile

pytest.importorskip("triton")
import triton

from weft.kernels.paged_attention.triton import PARTIALS_MAX, Plan, Room

VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cuda":
    pytestmark = pytest.mark.gpu
else:
    pytestmark = pytest.mark.skipif(
        VERSION < (3, 7), reason="its interpreter cannot loop to a bound that a kernel computes"
    )
# Chunks and decodes, of which some span several splits.
LONG = [(1, 1100), (3, 600), (12, 520), (1, 20)]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 3e-2}


def plan_of(case, rows=None, *, processors=132, room=None):
    """The plan of some rows of a case, or of all, and their tokens."""
    layout, tokens = selected(case, rows)
    plan = Plan(
        *layout,
        case.page_tokens,
        heads=case.q.shape[1],
        kv_heads=case.k_cache.shape[2],
        device=DEVICE,
        processors=processors,
        room=room,
    )
    return plan, tokens


def attended(case, window=None, rows=None, *, dtype=torch.float32, soft_cap=None, **options):
    plan, tokens = plan_of(case, rows, **options)
    q, *caches = (x.to(DEVICE, dtype) for x in (case.q[tokens], case.k_cache, case.v_cache))
    return plan.attend(q, *caches, scale=case.scale, window=window, soft_cap=soft_cap).cpu()


def assert_near(actual, expected):
    tolerance = TOLERANCES[actual.dtype]
    torch.testing.assert_close(actual.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("window", [None, 6], ids="window-{}".format)
@pytest.mark.parametrize("shape", ["grouped", "multi-query"])
def test_a_mixed_step_agrees_with_the_definition(shape, window):
    case = made(ROWS["mixed"], **SHAPES[shape])
    assert_near(attended(case, window), definition(case, window))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "window"),
    [(torch.float32, None), (torch.float32, 6), (torch.float16, 1), (torch.bfloat16, 64)],
    ids=str,
)
@pytest.mark.parametrize(
    "shape",
    [
        *SHAPES.values(),
        {"heads": 14, "kv_heads": 2, "size": 64, "page_tokens": 16},
        {"heads": 4, "kv_heads": 1, "size": 80, "page_tokens": 16},
        {"heads": 2, "kv_heads": 2, "size": 96, "page_tokens": 32},
        {"heads": 4, "kv_heads": 2, "size": 256, "page_tokens": 16},
        {"heads": 37, "kv_heads": 1, "size": 20},
        {"heads": 40, "kv_heads": 2, "size": 16},
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", ["decode", "mixed"])
def test_every_shape_agrees_and_a_row_is_bit_equal_alone(rows, shape, dtype, window):
    case = made(ROWS[rows], **shape)
    for x in (case.q, case.k_cache, case.v_cache, *case.keys, *case.values):
        x.copy_(x.to(dtype))
    together = attended(case, window, dtype=dtype)
    assert_near(together, definition(case, window))
    for row in range(len(case.counts)):
        own = slice(case.starts[row], case.starts[row + 1])
        assert attended(case, window, [row], dtype=dtype).equal(together[own])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_near(dtype):
    case = made(ROWS["chunks-after-prefixes"], **SHAPES["grouped"])
    assert_near(attended(case, dtype=dtype), definition(case, None))


def test_keys_may_be_kept_in_another_type_than_queries():
    case = made(ROWS["chunks-after-prefixes"])
    for x in (case.k_cache, case.v_cache, *case.keys, *case.values):
        x.copy_(x.half())
    plan, _ = plan_of(case)
    caches = (x.to(DEVICE, torch.float16) for x in (case.k_cache, case.v_cache))
    seen = plan.attend(case.q.to(DEVICE), *caches, scale=case.scale, window=None).cpu()
    assert_near(seen, definition(case, None))


@pytest.mark.parametrize(
    "window", [None, pytest.param(600, marks=pytest.mark.slow)], ids="window-{}".format
)
def test_a_long_row_is_bit_equal_alone_and_however_the_step_is_cut(window):
    case = made(LONG, heads=3, kv_heads=1, page_tokens=16)
    whole = attended(case, window, processors=1)
    torch.testing.assert_close(whole, definition(case, window), rtol=1e-5, atol=1e-5)
    assert attended(case, window, processors=1000).equal(whole)
    for row in range(len(case.counts)):
        own = slice(case.starts[row], case.starts[row + 1])
        assert attended(case, window, [row]).equal(whole[own])


@pytest.fixture
def exact_order(monkeypatch):
    """Let the interpreter's dot sum each row in one order, as matrix instructions do.

    The order of numpy's own depends on the number of rows and on a row's place among them.
    """
    monkeypatch.setattr(np, "matmul", lambda a, b, dtype: np.einsum("mk,kn->mn", a, b, dtype=dtype))


@pytest.mark.parametrize(
    "window", [pytest.param(None, marks=pytest.mark.slow), 30], ids="window-{}".format
)
def test_a_query_is_bit_equal_whatever_chunk_it_is_in(exact_order, window):
    shape = {"heads": 7, "kv_heads": 1, "size": 24, "page_tokens": 16}
    first, last = 500, 525  # across the border of two splits
    whole = made([(last - first, last)], **shape)
    expected = attended(whole, window)
    for begin, end in ((500, 501), (501, 503), (503, 525), (510, 513), (524, 525)):
        part = made([(end - begin, last)], **shape)
        part.lengths = [end]
        own = slice(begin - first, end - first)
        part.q = whole.q[own]
        part.k_cache, part.v_cache = whole.k_cache, whole.v_cache
        part.page_table = whole.page_table
        assert attended(part, window).equal(expected[own])


def test_a_soft_cap_bounds_the_scores():
    case = made([(1, 30), (5, 20)])
    case.q *= 30  # scores beyond the cap
    layout = (torch.from_numpy(x) for x in (case.page_table, case.starts, case.positions))
    expected = reference.paged_attention(
        case.q, case.k_cache, case.v_cache, *layout, scale=case.scale, window=None, soft_cap=5.0
    )
    assert_near(attended(case, soft_cap=5.0), expected)
    assert not torch.allclose(attended(case), expected, atol=0.1)


def test_the_reference_caps_by_tanh():
    case = made([(1, 7)], heads=1, kv_heads=1)
    scores = (case.keys[0][:, 0] @ case.q[0, 0]) * case.scale
    weights = (0.5 * (scores / 0.5).tanh()).softmax(0)
    layout = (torch.from_numpy(x) for x in (case.page_table, case.starts, case.positions))
    actual = reference.paged_attention(
        case.q, case.k_cache, case.v_cache, *layout, scale=case.scale, window=None, soft_cap=0.5
    )
    torch.testing.assert_close(actual[0, 0], weights @ case.values[0][:, 0])


def test_q_may_be_part_of_a_projection_and_pages_part_of_an_arena():
    case = made(ROWS["mixed"], heads=6, kv_heads=2, size=16)
    expected = attended(case)
    tokens, heads, size = case.q.shape
    qkv = torch.full((tokens, heads + 4, size), NAN)
    qkv[:, :heads] = case.q
    arena = torch.full((len(case.k_cache), 3, *case.k_cache.shape[1:]), NAN)
    arena[:, 0], arena[:, 1] = case.k_cache, case.v_cache
    qkv, arena = qkv.to(DEVICE), arena.to(DEVICE)
    plan, _ = plan_of(case)
    views = qkv[:, :heads], arena[:, 0], arena[:, 1]
    assert plan.attend(*views, scale=case.scale, window=None).cpu().equal(expected)


def test_a_row_of_nan_reaches_no_other_row():
    rows = [(1, 17), (4, 18), (1, 20), (3, 19), (1, 18)]
    case = made(rows)
    expected = attended(case)
    case.q[case.starts[2]] = NAN
    case.k_cache[case.page_table[3, 0]] = NAN
    case.v_cache[case.page_table[4, 1]] = NAN
    actual = attended(case)
    failed = slice(case.starts[2], None)
    assert actual[failed].isnan().all()
    assert actual[: case.starts[2]].equal(expected[: case.starts[2]])


def test_what_lies_before_the_window_is_not_read():
    case = made([(1, 700), (5, 90), (1, 3)])
    expected = attended(case, 20)
    for row, (count, length) in enumerate(zip(case.counts, case.lengths, strict=True)):
        # Positions that not even the row's first query sees.
        gone = max(0, length - count - 19) // case.page_tokens
        case.k_cache[case.page_table[row, :gone]] = NAN
        case.v_cache[case.page_table[row, :gone]] = NAN
    assert attended(case, 20).equal(expected)


def test_large_scores_are_exact_enough():
    case = made([(1, 40), (9, 30)])
    case.q *= 100
    torch.testing.assert_close(attended(case), definition(case, None), rtol=1e-4, atol=1e-5)


def test_a_plan_with_room_serves_one_step_after_another_from_the_same_memory():
    first, second = made([(1, 700), (1, 5)]), made([(1, 9), (1, 1030), (1, 30)])
    plan, _ = plan_of(first, room=Room(rows=4, pages=300))
    places = []
    for case in (first, second):
        plan.fill(case.page_table, case.starts, case.positions)
        padded = torch.cat((case.q, torch.full((4 - len(case.q), *case.q.shape[1:]), NAN)))
        q, *caches = (x.to(DEVICE) for x in (padded, case.k_cache, case.v_cache))
        seen = plan.attend(q, *caches, scale=case.scale, window=None).cpu()
        assert seen[: len(case.q)].equal(attended(case))
        places.append([section.data_ptr() for section in plan._sections])
    assert places[0] == places[1]


@pytest.mark.skipif(DEVICE.type != "cuda", reason="captures a CUDA graph")
def test_a_captured_launch_attends_for_whatever_step_is_filled_in():
    first, second = made([(1, 700), (1, 5), (1, 90)]), made([(1, 9), (1, 1030), (1, 30)])
    plan, _ = plan_of(first, room=Room(rows=3, pages=300))
    pages = max(len(first.k_cache), len(second.k_cache))
    q, *caches = (
        torch.zeros(size, *x.shape[1:], device=DEVICE)
        for size, x in ((3, first.q), (pages, first.k_cache), (pages, first.v_cache))
    )

    def attend():
        return plan.attend(q, *caches, scale=first.scale, window=None)

    attend()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        seen = attend()
    for case in (first, second):
        plan.fill(case.page_table, case.starts, case.positions)
        for static, x in zip((q, *caches), (case.q, case.k_cache, case.v_cache), strict=True):
            static[: len(x)].copy_(x)
        graph.replay()
        assert seen.cpu().equal(attended(case))


def test_a_step_that_does_not_fit_its_room_is_a_bug():
    with pytest.raises(AssertionError, match=r"\[4, 14, 0"):
        plan_of(made([(1, 5), (1, 9)]), room=Room(rows=2, pages=2))


def made_cut(seed, *, programs, end=PARTIALS_MAX):
    """Tiles of random rows, and their work."""
    rng = np.random.default_rng(seed)
    counts = np.where(rng.random(40) < 0.7, 1, rng.integers(1, 50, 40))
    firsts = (rng.pareto(0.7, 40) * 300).astype(np.int64).clip(0, 100_000)
    starts = np.concatenate(([0], np.cumsum(counts)))
    positions = np.concatenate(
        [np.arange(first, first + count) for first, count in zip(firsts, counts, strict=True)]
    )
    tiles = tile(starts, positions, np.where(counts > 4, 8, 4))
    return tiles, cut(tiles, heads_parallel=4, programs=programs, first=10, end=end)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("programs", [1, 264, 100_000])
def test_every_split_of_every_query_is_computed_once(seed, programs):
    tiles, work = made_cut(seed, programs=programs)
    splits = {}  # of each query
    slots = []
    for token, tokens, _, position, begin, end, partial in work.items.tolist():
        assert partial < 0 or end == begin + 1
        for i in range(tokens):
            splits.setdefault(token + i, []).extend(range(begin, end))
            if partial >= 0:
                slots.append((token + i, begin, partial + begin * tokens + i))
        assert position + tokens - 1 < end * SPLIT_TOKENS or partial >= 0
    last = {
        token + i: (position + tokens - 1) // SPLIT_TOKENS
        for token, tokens, _, position in zip(*tiles, strict=True)
        for i in range(tokens)
    }
    assert {q: sorted(found) for q, found in splits.items()} == {
        q: list(range(most + 1)) for q, most in last.items()
    }
    # A merge finds each partial result where it was left.
    merged = [
        (token, split, partial + split * stride)
        for token, _, partial, stride in work.merges.tolist()
        for split in range(last[token] + 1)
    ]
    assert sorted(merged) == sorted(slots)
    assert len({slot for *_, slot in slots}) == len(slots) == work.partials
    assert all(10 <= slot < 10 + work.partials for *_, slot in slots)


def test_tiles_that_would_finish_last_are_divided_while_there_is_room():
    tiles, alone = made_cut(0, programs=1)
    assert alone.partials == 0  # one program does everything anyway
    longest = int(tiles.splits.max())
    _, many = made_cut(0, programs=100_000, end=1_000_000)
    assert (many.items[:, 5] - many.items[:, 4]).max() == 1
    _, little = made_cut(0, programs=100_000, end=10 + longest)
    assert 0 < little.partials <= longest
    lengths = little.items[:, 5] - little.items[:, 4]
    assert lengths.tolist() == sorted(lengths, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_compiled_narrow_and_wide_tiles_sum_over_keys_in_the_same_order(capability):
    """Which rows share a tile's keys, and which warps compute them, may differ."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.attention_layouts", str(capability)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    found = {}
    for line in run.stdout.splitlines():
        model, dtype, rows, layouts = json.loads(line)
        assert len(layouts) == 2  # of the maximum and of the sum
        along_keys = [re.sub(r"warpsPerCTA = \[\d+,", "warpsPerCTA = [", x) for x in layouts]
        found.setdefault((model, dtype), {})[rows] = along_keys
    assert len(found) == 6
    for tiles in found.values():
        assert tiles[16] == tiles[32]
