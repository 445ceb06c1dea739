"""Compiles for a GPU what the Triton wrappers would launch there; needs no GPU.

    python -m tests.kernels.compiled 90 [part of a name [index count]]

With an index and a count, only every count-th case from that index on.

Each case calls a wrapper with tensors of torch's device "meta", which have a shape and no memory.
What it would launch is recorded, compiled for the given compute capability, and reported as a line
of JSON. Not under TRITON_INTERPRET, where there is nothing to compile.
"""

from __future__ import annotations

import inspect
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TYPES = {
    torch.bool: "i1",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}
ALIGNED = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Report:
    """What the compilers say of one kernel."""

    case: str
    kernel: str
    capability: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    stores: dict[str, int]  # global, by width as in "v4.b32"
    instructions: dict[str, int]  # those that tests ask for


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, as a wrapper asked for it."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, Any]  # num_warps and the like

    def source(self) -> ASTSource:
        """Specialise by the arguments as Triton does when it launches."""
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(self.kernel.params):
            name, value = parameter.name, self.arguments[parameter.name]
            is_special = not parameter.do_not_specialize
            is_one = isinstance(value, int) and not isinstance(value, bool) and value == 1
            if parameter.is_constexpr or value is None or (is_special and is_one):
                signature[name] = "constexpr"
                constants[name] = value
                continue
            signature[name] = _type(value)
            if is_special and (isinstance(value, torch.Tensor) or _is_aligned(value)):
                attributes[(index,)] = ALIGNED
        return ASTSource(self.kernel, signature, constants, attributes)


def _type(value: Any) -> str:
    match value:
        case torch.Tensor():
            return "*" + TYPES[value.dtype]
        case bool():
            return "u1"
        case int():
            return "i32" if -(2**31) <= value < 2**31 else "i64"
        case float():
            return "fp32"
        case _:
            raise TypeError(f"an argument is {value!r}")


def _is_aligned(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value % 16 == 0


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Note what would be launched instead of launching it."""
    launches: list[Launch] = []

    def run(kernel, *args, grid, warmup, **named):
        names = {parameter.name for parameter in kernel.params}
        options = {name: value for name, value in named.items() if name not in names}
        own = {name: value for name, value in named.items() if name in names}
        bound = inspect.signature(kernel.fn).bind(*args, **own)
        bound.apply_defaults()
        launches.append(Launch(kernel, dict(bound.arguments), options))

    with mock.patch.object(JITFunction, "run", run):
        yield launches


def compiled(case: str, launch: Launch, capability: int) -> Report:
    """Compile as Triton does for a launch, and take in what its ptxas tells (``-v``)."""
    triton.knobs.nvidia.dump_ptxas_log = True
    triton.knobs.compilation.always_compile = True  # what is cached tells nothing
    told = io.StringIO()
    with redirect_stdout(told):
        kernel = triton.compile(
            launch.source(), target=GPUTarget("cuda", capability, 32), options=launch.options
        )
    (registers,) = re.findall(r"Used (\d+) registers", told.getvalue())
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", told.getvalue())
    assert spills, told.getvalue()
    ptx = kernel.asm["ptx"]
    return Report(
        case=case,
        kernel=launch.kernel.__name__,
        capability=capability,
        registers=int(registers),
        spilled_bytes=sum(int(size) for size in spills),
        shared_bytes=kernel.metadata.shared,
        stores=_counts(r"st\.global(?:\.[a-z_:0-9]+?)*?\.((?:v\d\.)?[bfus]\d+)", ptx),
        instructions=_counts(r"\b(mma\.sync|wgmma\.mma_async|cp\.async\.c[ag]|atom\.)", ptx),
    )


def _counts(pattern: str, ptx: str) -> dict[str, int]:
    found = re.findall(pattern, ptx)
    return {name: found.count(name) for name in sorted(set(found))}


def main(capability: int, part: str = "", index: int = 0, count: int = 1) -> None:
    from tests.kernels import compiled_operations, compiled_sgmv

    cases: dict[str, Callable[[], None]] = {**compiled_sgmv.CASES, **compiled_operations.CASES}
    for name, call in [case for case in cases.items() if part in case[0]][index::count]:
        with recorded() as launches:
            call()
        assert launches, f"{name} launches nothing"
        for launch in launches:
            print(json.dumps(asdict(compiled(name, launch, capability))), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:3], *map(int, sys.argv[3:]))
