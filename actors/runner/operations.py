"""The operations of the forward pass as one device computes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft.actors.runner.architecture import Architecture, UnsupportedModel
from weft.actors.runner.device_sampler import Sample
from weft.kernels.int8_linear import cpu as native_int8_linear
from weft.kernels.int8_linear import reference as int8_linear
from weft.kernels.kv_write import cpu as native_kv_write
from weft.kernels.kv_write import reference as kv_write
from weft.kernels.linear import cpu as native_linear
from weft.kernels.linear.onednn import OneDnnLinear
from weft.kernels.linear.reference import Linear
from weft.kernels.paged_attention import cpu as native_attention
from weft.kernels.paged_attention import padded
from weft.kernels.paged_matrix import cpu as native_matrix
from weft.kernels.paged_matrix import reference as matrix
from weft.kernels.paged_matrix.reference import Matrix
from weft.kernels.rms_norm import cpu as native_rms_norm
from weft.kernels.rms_norm import reference as rms_norm
from weft.kernels.rotary import cpu as native_rotary
from weft.kernels.rotary import reference as rotary
from weft.kernels.silu_mul import cpu as native_silu_mul
from weft.kernels.silu_mul import reference as silu_mul
from weft.kernels.take_rows import cpu as native_take_rows
from weft.kernels.take_rows import reference as take_rows

# What is written in C: all of it is used, or nothing.
NATIVE = (
    native_int8_linear, native_kv_write, native_linear, native_matrix, native_rms_norm,
    native_rotary, native_silu_mul, native_take_rows,
)  # fmt: skip


class Projection(Protocol):
    """A linear layer that holds its weights: x [T, in] to [T, out]."""

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        ...


class Plan(Protocol):
    """How one step's rows attend."""

    def attend(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """Compute what ``paged_attention.reference`` says, where shapes and types are."""
        ...


Ints = NDArray[np.int64]
Planner = Callable[[Ints, Ints, Ints], Plan]
"""From a step's page_table, starts and positions, as ``paged_attention.reference`` takes them."""


class Operations(NamedTuple):
    """Each computes what the ``reference`` of the same name says, where shapes and types are."""

    device: torch.device
    linear: Callable[[Tensor, Tensor | None], Projection]
    """From weight [out, in] and bias [out] or None."""
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    rotary_: Callable[[Tensor, Tensor, Tensor, Tensor], None]
    kv_write: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    silu_mul: Callable[[Tensor], Tensor]
    take_rows: Callable[[Tensor, Tensor], Tensor]
    times: Callable[[Matrix, Tensor], Tensor]
    times_transposed: Callable[[Matrix, Tensor], Tensor]
    """With matrices of adapters, in pages (``paged_matrix``)."""
    planner: Callable[[Architecture, int, torch.dtype], Planner]
    """From the part of a model, the tokens of a page and the type of the computation."""
    sample: Sample | None = None
    """Draws where the logits are; None: only the host does."""
    in_c: bool = False
    """Whether a ``Program`` can record them: all, but attention to heads of unusual sizes."""


def choose(device: torch.device, *, int8: bool) -> Operations:
    """Return the fastest that this machine has for ``device``.

    ``int8``: linear layers round their weights and inputs to bytes. Raises ``UnsupportedModel`` if
    they cannot there.
    """
    if device.type != "cpu":
        if int8:
            raise UnsupportedModel("quantization is int8, which only a CPU computes: leave it out")
        if find_spec("triton") is None:
            raise UnsupportedModel("a GPU needs triton: install it, or let device be cpu")
        return in_triton(device, torch.cuda.get_device_properties(device).multi_processor_count)
    if any(kernel.library() is None for kernel in NATIVE):
        return _plain(device, int8_linear.Int8Linear if int8 else OneDnnLinear)
    return Operations(
        device=device,
        linear=native_int8_linear.Int8Linear if int8 else native_linear.PackedLinear,
        rms_norm=native_rms_norm.rms_norm,
        add_rms_norm=native_rms_norm.add_rms_norm,
        rotary_=native_rotary.rotary_,
        kv_write=native_kv_write.kv_write,
        silu_mul=native_silu_mul.silu_mul,
        take_rows=native_take_rows.take_rows,
        times=native_matrix.times,
        times_transposed=native_matrix.times_transposed,
        planner=partial(_planner, device),
        in_c=True,
    )


def in_triton(device: torch.device, processors: int) -> Operations:
    """Return what Triton compiles for a GPU of so many multiprocessors.

    Or interprets on a CPU, which is for tests: where TRITON_INTERPRET was set before the import.
    """
    # Not everywhere is Triton installed, and importing it takes half a second.
    from weft.kernels.kv_write import triton as kv_write
    from weft.kernels.paged_attention import triton as attention
    from weft.kernels.rms_norm import triton as rms_norm
    from weft.kernels.rotary import triton as rotary
    from weft.kernels.sample import triton as sample
    from weft.kernels.silu_mul import triton as silu_mul

    def planner(architecture: Architecture, page_tokens: int, _: torch.dtype) -> Planner:
        return partial(
            attention.Plan,
            page_tokens=page_tokens,
            heads=architecture.heads,
            kv_heads=architecture.kv_heads,
            device=device,
            processors=processors,
        )

    return Operations(
        device=device,
        linear=Linear,
        rms_norm=rms_norm.rms_norm,
        add_rms_norm=rms_norm.add_rms_norm,
        rotary_=rotary.rotary_,
        kv_write=kv_write.kv_write,
        silu_mul=silu_mul.silu_mul,
        take_rows=take_rows.take_rows,
        times=matrix.times,
        times_transposed=matrix.times_transposed,
        planner=planner,
        sample=sample.sample,
    )


def _plain(
    device: torch.device, linear: Callable[[Tensor, Tensor | None], Projection]
) -> Operations:
    return Operations(
        device=device,
        linear=linear,
        rms_norm=rms_norm.rms_norm,
        add_rms_norm=rms_norm.add_rms_norm,
        rotary_=rotary.rotary_,
        kv_write=kv_write.kv_write,
        silu_mul=silu_mul.silu_mul,
        take_rows=take_rows.take_rows,
        times=matrix.times,
        times_transposed=matrix.times_transposed,
        planner=partial(_planner, device),
    )


def _planner(
    device: torch.device, architecture: Architecture, page_tokens: int, dtype: torch.dtype
) -> Planner:
    if native_attention.serves(architecture.head_dim, device):
        return native_attention.Plan
    return partial(
        padded.plan,
        page_tokens=page_tokens,
        windows=set(architecture.windows),
        device=device,
        dtype=dtype,
    )
