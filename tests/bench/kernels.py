"""Linear layers in C for CPUs, beside torch's own: how long a decoder layer's projections take."""

import time
from typing import NamedTuple

import torch
import torch.nn.functional as F

from tests.bench.table import markdown
from weft.kernels.int8_linear.cpu import Int8Linear
from weft.kernels.linear.cpu import PackedLinear
from weft.kernels.linear.onednn import OneDnnLinear

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
# (in, out) of a layer's projections: those of q, k and v are one, and those of gate and up.
PROJECTIONS = {
    "demo": ((256, 512), (256, 256), (256, 1376), (688, 256)),
    "0.5b": ((896, 1152), (896, 896), (896, 9728), (4864, 896)),
}
# Layers are taken in turn, as a model does: none is in the first caches when it comes.
WEIGHTS_MIN = 48 << 20
# Long enough for the clock, short enough that some sample meets no neighbour.
SAMPLE_S = 0.02


class Kind(NamedTuple):
    """A linear layer and how it holds its weights."""

    make: object  # from a float32 weight
    weight_bytes: int


KINDS = {
    "F.linear": Kind(lambda w: lambda x: F.linear(x, w), 4),
    "oneDNN": Kind(lambda w: OneDnnLinear(w, None), 4),
    "float32": Kind(lambda w: PackedLinear(w, None), 4),
    "bfloat16": Kind(lambda w: PackedLinear(w.bfloat16(), None), 2),
    "float16": Kind(lambda w: PackedLinear(w.half(), None), 2),
    "int8": Kind(lambda w: Int8Linear(w, None), 1),
}


@torch.inference_mode()
def linear_table(shape, *, rounds, threads):
    """Return a row for each count of tokens and kind: the best of rounds, all taking turns."""
    torch.set_num_threads(threads)
    projections = PROJECTIONS[shape]
    weights = sum(features * outputs for features, outputs in projections)
    layers = -(-WEIGHTS_MIN // weights)
    matrices = [
        [torch.randn(out, features) / features**0.5 for features, out in projections]
        for _ in range(layers)
    ]
    kinds = {
        name: [[kind.make(matrix) for matrix in layer] for layer in matrices]
        for name, kind in KINDS.items()
    }
    rows = []
    for tokens in TOKENS:
        inputs = [torch.randn(tokens, features) for features, _ in projections]
        best = dict.fromkeys(kinds, float("inf"))
        for _ in range(rounds):
            for name, made in kinds.items():
                best[name] = min(best[name], _seconds(made, inputs, threads))
        for name, kind in KINDS.items():
            taken = best[name]
            rows.append(
                (
                    f"{tokens}, {name}",
                    f"{taken * 1e6:.0f}",
                    f"{best['oneDNN'] / taken:.2f}",
                    f"{best['F.linear'] / taken:.2f}",
                    f"{2 * tokens * weights / taken / 1e9:.0f}",
                    f"{weights * kind.weight_bytes / taken / 1e9:.1f}",
                )
            )
    header = ("tokens, weights", "us", "x oneDNN", "x F.linear", "GFLOP/s", "GB/s of weights")
    return markdown(header, rows)


def _seconds(layers, inputs, threads):
    """Seconds that one layer's projections take, on average over all layers and some passes."""
    # One thread's own time does not count when others have its core.
    clock = time.thread_time if threads == 1 else time.perf_counter
    started, passes = clock(), 0
    while (elapsed := clock() - started) < SAMPLE_S or passes < 2:
        for projections in layers:
            for projection, x in zip(projections, inputs, strict=True):
                projection(x)
        passes += 1
    return elapsed / passes / len(layers)
