"""LoRA's kernels over shapes, batches and distributions, beside torch and peers' kernels.

What is measured is a layer's LoRA update: its four sites, shrink and expand each, adapters of ranks
8 to 128 mixed. The base model is not computed. Each measurement goes over other adapters and layers
before it comes back to the first, so that weights come from memory and not from a cache.
"""

import gc
import importlib
import sys
from typing import NamedTuple

import torch
import triton

from tests.bench.gpu import adapters as made
from tests.bench.gpu import batches, device
from tests.bench.gpu.engine_torch import Stacked, TooLarge
from tests.bench.gpu.shapes import SHAPES
from tests.bench.table import markdown

ENGINES = ("weft", "torch", "vllm", "sglang")
STACKED = ("torch", "vllm")  # with weights laid out in the same way
LAYERS = 2
# Of launches that a graph holds; and the adapters of all of them are this many caches, if possible.
ROTATION_MAX = 64
ROTATION_CACHES = 4
CHECKED_TOKENS = 24  # of the batch whose result is compared with the definition
# Of bfloat16 sums, relative to the largest.
TOLERANCE = 0.03


class Case(NamedTuple):
    """One batch."""

    tokens: int
    adapters: int
    distribution: str


class Cost(NamedTuple):
    """What a layer's update must move and compute, at least."""

    adapter_bytes: float  # of each adapter that occurs, once
    bytes: float  # and x read, y read and written
    operations: float


class Results(NamedTuple):
    """A sweep of one shape."""

    copy_rate: float  # bytes a second
    matrix_rate: float  # operations a second
    costs: dict[Case, Cost]
    seconds: dict[str, dict[Case, float]]  # by engine
    notes: list[str]


def cases(tokens, adapters, distributions):
    """Return all batches that make sense."""
    found = []
    for count in tokens:
        for each in adapters:
            if each == 1:
                found.append(Case(count, 1, "identical"))
            elif each <= count:
                others = [d for d in distributions if d != "identical"]
                found += [Case(count, each, distribution) for distribution in others]
    return found


def run(name, todo, *, dtype=torch.bfloat16):
    """Measure every engine that is there. On a CPU Triton must run in its interpreter."""
    shape, place = SHAPES[name], device.find()
    if place.type == "cpu" and not triton.knobs.runtime.interpret:
        raise SystemExit("no GPU; with TRITON_INTERPRET=1, --models tiny shows that this works")
    ranks = batches.ranks_of(max(case.adapters for case in todo))
    if place.type == "cuda":
        ranks = batches.ranks_of(max(128, len(ranks)))
    rotations = {case: _rotation(shape, case, ranks, place) for case in todo}
    results = Results(
        device.copy_rate(place),
        device.matrix_rate(place, dtype),
        {case: _cost(shape, ranks, rotations[case], dtype) for case in todo},
        {},
        [],
    )
    options = {"layers": LAYERS, "dtype": dtype, "place": place}
    options["tokens_max"] = max(CHECKED_TOKENS, *(case.tokens for case in todo))
    stacked = None
    for key in ENGINES:
        try:
            module = importlib.import_module(f"tests.bench.gpu.engine_{key}")
            if key in STACKED:
                stacked = stacked or Stacked(shape, ranks, layers=LAYERS, dtype=dtype, place=place)
                engine = module.Engine(shape, ranks, **options, stacked=stacked)
            else:
                stacked = None
                engine = module.Engine(shape, ranks, **options)
            error = _error(engine, shape, ranks, dtype, place)
            if error > TOLERANCE:
                results.notes.append(f"{module.NAME} is left out: wrong by {error:.3f}")
                continue
            results.seconds[module.NAME] = {
                case: seconds
                for case in todo
                if (seconds := _measure(engine, shape, case, rotations[case], dtype, place))
            }
        except Exception as error:  # what other projects raise is theirs to choose
            if key == "weft":
                raise
            results.notes.append(f"{key} is left out: {type(error).__name__}: {error}")
            continue
        told = f"{name}, {module.NAME}: error {error:.4f}, {len(todo)} cases"
        print(told, file=sys.stderr, flush=True)
        del engine
        gc.collect()
    return results


def table(results):
    """Return a sweep as a table."""
    others = [engine for engine in results.seconds if engine != "weft"]
    header = (
        "tokens", "adapters", "distribution", "weft, us a layer", "adapters, GB/s",
        "of copying", "all, GB/s", "TFLOP/s", "of matrices", *(f"{e}, us" for e in others),
    )  # fmt: skip
    rows = []
    for case, cost in results.costs.items():
        seconds = results.seconds["weft"][case]
        theirs = (results.seconds[engine].get(case) for engine in others)
        rows.append(
            (
                *case,
                f"{seconds * 1e6:.1f}",
                f"{cost.adapter_bytes / seconds / 1e9:.0f}",
                f"{cost.adapter_bytes / seconds / results.copy_rate:.0%}",
                f"{cost.bytes / seconds / 1e9:.0f}",
                f"{cost.operations / seconds / 1e12:.2f}",
                f"{cost.operations / seconds / results.matrix_rate:.1%}",
                *(f"{each * 1e6:.1f}" if each else "no room" for each in theirs),
            )
        )
    return markdown(header, rows)


def draw(name, results, folder):
    """Write a sweep's pictures if matplotlib is installed; return what there is to say of it."""
    try:
        from tests.bench.gpu import plots
    except ImportError:
        return ["No pictures: matplotlib is not installed (weft's extra `bench`)."]
    return [f"Picture: {path}" for path in plots.save(name, results, folder)]


def _rotation(shape, case, ranks, place):
    """Return (rows, layer) each: the batch with one set of adapters after another."""
    rows = batches.draw(case.distribution, case.tokens, case.adapters)
    wanted = ROTATION_CACHES * device.cache_bytes(place)
    found, size = [], 0
    for shift in range(0, len(ranks) - case.adapters + 1, case.adapters):
        for layer in range(LAYERS):
            shifted = batches.rotated(rows, shift, len(ranks))
            found.append((shifted, layer))
            size += _adapter_bytes(shape, ranks, shifted)
            if size >= wanted or len(found) == ROTATION_MAX:
                return found
    return found


def _adapter_bytes(shape, ranks, rows, itemsize=2):
    return itemsize * int(ranks[list(set(rows.tolist()))].sum()) * _rank_size(shape)


def _rank_size(shape):
    return sum(site.size for site in shape.sites)


def _cost(shape, ranks, rotation, dtype):
    """Return the mean over a rotation."""
    count = len(rotation)
    tokens = len(rotation[0][0])
    weights = sum(_adapter_bytes(shape, ranks, rows, dtype.itemsize) for rows, _ in rotation)
    columns = sum(site.features + 2 * site.out for site in shape.sites)
    operations = sum(2 * int(ranks[rows].sum()) * _rank_size(shape) for rows, _ in rotation)
    return Cost(
        weights / count,
        weights / count + tokens * columns * dtype.itemsize,
        operations / count,
    )


def _measure(engine, shape, case, rotation, dtype, place):
    """Return a layer's seconds; None if the engine has no room for the batch."""
    try:
        adds = {}
        for rows, _ in rotation:
            key = rows.tobytes()
            adds[key] = adds.get(key) or engine.prepare(rows)
    except TooLarge:
        return None
    xs, ys = _activations(shape, case.tokens, dtype, place)

    def work():
        for rows, layer in rotation:
            for site, (x, y) in enumerate(zip(xs, ys, strict=True)):
                adds[rows.tobytes()](y, x, layer, site)

    return device.seconds(work, place) / len(rotation)


def _activations(shape, tokens, dtype, place):
    xs = [torch.randn(tokens, site.features, device=place).to(dtype) for site in shape.sites]
    ys = [torch.zeros(tokens, site.out, device=place, dtype=dtype) for site in shape.sites]
    return xs, ys


def _error(engine, shape, ranks, dtype, place):
    """Return how far an engine is from the definition, relative to the largest update."""
    rows = batches.draw("uniform", CHECKED_TOKENS, len(ranks))
    xs, ys = _activations(shape, len(rows), dtype, place)
    add = engine.prepare(rows)
    worst = 0.0
    for site, (x, y) in enumerate(zip(xs, ys, strict=True)):
        add(y, x, LAYERS - 1, site)
        wanted = made.expected(shape, site, x, rows, ranks)
        worst = max(worst, float((y.float() - wanted).abs().max() / wanted.abs().max()))
    return worst
