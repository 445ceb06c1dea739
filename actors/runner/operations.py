"""The operations of the forward pass as one device computes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from weft.actors.runner.architecture import UnsupportedModel
from weft.kernels.kv_write import cpu as native_kv_write
from weft.kernels.kv_write import reference as kv_write
from weft.kernels.linear import cpu as native_linear
from weft.kernels.linear.onednn import OneDnnLinear
from weft.kernels.linear.reference import Linear
from weft.kernels.rms_norm import cpu as native_rms_norm
from weft.kernels.rms_norm import reference as rms_norm
from weft.kernels.rotary import cpu as native_rotary
from weft.kernels.rotary import reference as rotary
from weft.kernels.silu_mul import cpu as native_silu_mul
from weft.kernels.silu_mul import reference as silu_mul

# What is written in C: all of it is used, or nothing.
NATIVE = (native_kv_write, native_linear, native_rms_norm, native_rotary, native_silu_mul)


class Projection(Protocol):
    """A linear layer that holds its weights: x [T, in] to [T, out]."""

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        ...


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


def choose(device: torch.device, *, int8: bool) -> Operations:
    """Return the fastest that this machine has for ``device``.

    ``int8``: linear layers round their weights to bytes. Raises ``UnsupportedModel`` if they cannot
    there.
    """
    if device.type != "cpu":
        if int8:
            raise UnsupportedModel("quantization is int8, which only a CPU computes: leave it out")
        return _in_triton(device)
    if any(kernel.library() is None for kernel in NATIVE):
        return _plain(device, partial(OneDnnLinear, int8=int8))
    return Operations(
        device=device,
        linear=partial(native_linear.PackedLinear, int8=int8),
        rms_norm=native_rms_norm.rms_norm,
        add_rms_norm=native_rms_norm.add_rms_norm,
        rotary_=native_rotary.rotary_,
        kv_write=native_kv_write.kv_write,
        silu_mul=native_silu_mul.silu_mul,
    )


def _in_triton(device: torch.device) -> Operations:
    # It takes a while to import, and is of no use to a CPU.
    from weft.kernels.kv_write import triton as triton_kv_write
    from weft.kernels.rms_norm import triton as triton_rms_norm
    from weft.kernels.rotary import triton as triton_rotary
    from weft.kernels.silu_mul import triton as triton_silu_mul

    return Operations(
        device=device,
        linear=Linear,
        rms_norm=triton_rms_norm.rms_norm,
        add_rms_norm=triton_rms_norm.add_rms_norm,
        rotary_=triton_rotary.rotary_,
        kv_write=triton_kv_write.kv_write,
        silu_mul=triton_silu_mul.silu_mul,
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
    )
