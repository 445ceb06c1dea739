"""What `python -m tests.bench` can be told."""

import argparse
import os
from pathlib import Path

from tests.bench import kernels
from tests.bench.gpu import batches, checkpoints, decode
from tests.bench.gpu.shapes import SHAPES as KERNEL_SHAPES
from tests.bench.many.catalogue import SHAPES as CATALOGUES
from tests.bench.models import SHAPES
from tests.bench.peers import compare
from tests.bench.peers.install import FOLDER

SECTIONS = (
    "throughput", "latency", "steps", "logging", "kernels", "accuracy", "pool", "ranks", "replicas",
    "adapters", "tenants", "recovery",
)  # fmt: skip
# They need what is not part of this project, or another machine.
OTHERS = ("peers", "lora", "decode", "gpu")
TOGETHER = {"gpu": ["lora", "decode"]}


def parse(arguments=None):
    """Return the options; ``sections`` is never empty."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    named = f"of {', '.join(SECTIONS)} (all of them by default), {', '.join(OTHERS)}"
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=named)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, choices=SHAPES)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--plots", type=Path, default=Path("build/bench"), help="for PNG files")
    _add_kernels(parser.add_argument_group("kernels"))
    _add_adapters(parser.add_argument_group("adapters"))
    _add_peers(parser.add_argument_group("peers"))
    _add_lora(parser.add_argument_group("lora"))
    _add_decode(parser.add_argument_group("decode"))
    options = parser.parse_args(arguments)
    known = (*SECTIONS, *OTHERS)
    if unknown := set(options.sections) - set(known):
        parser.error(f"no section is called {unknown.pop()}; there are {', '.join(known)}")
    named = options.sections or SECTIONS
    options.sections = [part for each in named for part in TOGETHER.get(each, [each])]
    return options


def _add_kernels(group):
    names, kinds = list(kernels.PROJECTIONS), list(kernels.KINDS)
    group.add_argument("--layers", nargs="+", default=names[:2], choices=names)
    group.add_argument("--weights", nargs="+", default=kinds, choices=kinds)


def _add_adapters(group):
    names = list(CATALOGUES)
    group.add_argument("--catalogues", nargs="+", default=names, choices=names)
    help_text = "in a round; a quarter of them of the larger model"
    group.add_argument("--zipf-requests", type=int, default=512, help=help_text)


def _add_peers(group):
    engines = list(compare.ENGINES)
    group.add_argument("--engines", nargs="+", default=engines, choices=engines)
    group.add_argument("--dtypes", nargs="+", default=["float32"], choices=compare.DTYPES)
    group.add_argument("--peers", type=Path, default=FOLDER, help="where `make peers` put them")


def _add_lora(group):
    names = list(KERNEL_SHAPES)
    sizes = [1, 8, 32, 64, 128, 256, 1024, 4096, 8192]
    group.add_argument("--models", nargs="+", default=names[:2], choices=names)
    group.add_argument("--tokens", nargs="+", type=int, default=sizes)
    group.add_argument("--adapters", nargs="+", type=int, default=[1, 8, 32, 128])
    distributions = batches.DISTRIBUTIONS
    group.add_argument("--distributions", nargs="+", default=distributions, choices=distributions)


def _add_decode(group):
    names = list(checkpoints.CONFIGS)
    group.add_argument("--checkpoints", nargs="+", default=decode.MODELS, choices=names)
    group.add_argument("--rows", nargs="+", type=int, default=[1, 32, 128])
    group.add_argument("--row-adapters", nargs="+", type=int, default=[1, 32, 128])
    group.add_argument("--steps", type=int, default=50)
    group.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
