"""What each kind of device computes with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from weft.actors.runner import operations
from weft.actors.runner.ahead import AheadMeans
from weft.actors.runner.architecture import Architecture
from weft.actors.runner.attention import Attention, HostAttention
from weft.actors.runner.graphs import CudaRecord
from weft.actors.runner.limits import Limits
from weft.actors.runner.lora import HostLora, LoraKernel
from weft.actors.runner.operations import Operations
from weft.actors.runner.stream import CudaStream
from weft.kernels.sgmv.granules import Tables
from weft.runtime.config import Config


class MakeAttention(Protocol):
    """For the steps of one model."""

    def __call__(
        self,
        architecture: Architecture,
        limits: Limits,
        page_tokens: int,
        compute_dtype: torch.dtype,
    ) -> Attention:
        """Return what plans them."""
        ...


class MakeLora(Protocol):
    """For the adapters in one arena."""

    def __call__(
        self,
        arena: Tensor,
        tables: Tables,
        widths: Sequence[Sequence[int]],
        *,
        limits: Limits,
        compute_dtype: torch.dtype,
    ) -> LoraKernel:
        """Return what adds their updates."""
        ...


class Backend(NamedTuple):
    """The kernels of a device, and how it is driven."""

    operations: Operations
    attention: MakeAttention
    lora: MakeLora
    ahead: AheadMeans | None  # None: steps are computed when they are launched


def choose(config: Config, device: torch.device) -> Backend:
    """Return the best that this machine has for ``device``.

    Raises ``UnsupportedModel`` for what it has not.
    """
    chosen = operations.choose(device, int8=config.quantization == "int8")
    if device.type == "cpu":
        return host(chosen)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    means = AheadMeans(
        CudaStream(device, is_own=False),
        CudaStream(device, is_own=True),
        None if config.enforce_eager else CudaRecord,
    )
    return in_triton(chosen, processors, means)


def host(chosen: Operations, ahead: AheadMeans | None = None) -> Backend:
    """Return what a CPU computes with."""

    def attention(
        architecture: Architecture, limits: Limits, page_tokens: int, compute_dtype: torch.dtype
    ) -> Attention:
        return HostAttention(chosen.planner(architecture, page_tokens, compute_dtype))

    return Backend(chosen, attention, _host_lora, ahead)


def in_triton(chosen: Operations, processors: int, ahead: AheadMeans) -> Backend:
    """Return what a GPU of so many multiprocessors computes with, or Triton's interpreter."""
    # Importing Triton takes a while, and is of no use without a GPU.
    from weft.actors.runner.triton_device import TritonAttention, TritonLora

    return Backend(
        chosen,
        partial(TritonAttention, device=chosen.device, processors=processors),
        partial(TritonLora, processors=processors),
        ahead,
    )


def _host_lora(
    arena: Tensor,
    tables: Tables,
    widths: Sequence[Sequence[int]],
    *,
    limits: Limits,
    compute_dtype: torch.dtype,
) -> LoraKernel:
    return HostLora(arena, tables, widths)
