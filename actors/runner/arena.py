"""The device memory that KV pages and adapter weights share."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from weft.actors.runner import host_memory
from weft.actors.runner.architecture import Architecture
from weft.kernels.sgmv import granules


class PageShape(NamedTuple):
    """What one page is, in each layer: room for the KV of a block of tokens."""

    tokens: int
    kv_heads: int
    head_dim: int
    kv_dtype: torch.dtype
    lora_dtype: torch.dtype

    @property
    def kv_elements(self) -> int:
        """Numbers of a page's keys, and of its values."""
        return self.tokens * self.kv_heads * self.head_dim

    @property
    def granule_bytes(self) -> int:
        """Bytes of one piece of an adapter's weights."""
        return granules.RANKS * granules.COLUMNS * self.lora_dtype.itemsize

    @property
    def bytes(self) -> int:
        """Bytes of a page in one layer: what its keys and values need, in whole granules."""
        needed = 2 * self.kv_elements * self.kv_dtype.itemsize
        return math.ceil(needed / self.granule_bytes) * self.granule_bytes

    @property
    def granules(self) -> int:
        """Pieces of adapters' weights that fit a page, in one layer."""
        return self.bytes // self.granule_bytes


def page_shape(
    architecture: Architecture, tokens: int, kv_dtype: torch.dtype, lora_dtype: torch.dtype
) -> PageShape:
    """Return the page of ``tokens`` tokens of a model."""
    return PageShape(tokens, architecture.kv_heads, architecture.head_dim, kv_dtype, lora_dtype)


class Arena:
    """Pages of equal size; each holds keys and values of some tokens, or weights of an adapter.

    A page has one part in every layer, under the same number. Which page is whose is for the
    scheduler to know.
    """

    def __init__(self, shape: PageShape, layers: int, pages: int, device: torch.device) -> None:
        self.shape = shape
        self.pages = pages
        size = layers * pages * shape.bytes
        self.memory = _zeros(size, device).view(layers, pages, shape.bytes)
        """[layers, pages, bytes of a page] uint8."""
        self.kv = [self._kv(layer) for layer in range(layers)]
        """By layer: keys and values, each [pages, tokens, kv_heads, head_dim]."""

    def granules(self) -> Tensor:
        """Return the view for adapter weights: [layers, pages, granules of a page, 8, 128]."""
        return granules.typed(self.memory, self.shape.lora_dtype)

    def _kv(self, layer: int) -> tuple[Tensor, Tensor]:
        numbers = self.memory[layer].view(self.shape.kv_dtype)
        shape = (self.shape.tokens, self.shape.kv_heads, self.shape.head_dim)
        count = self.shape.kv_elements
        keys, values = numbers[:, :count], numbers[:, count : 2 * count]
        return keys.view(-1, *shape), values.view(-1, *shape)


def _zeros(size: int, device: torch.device) -> Tensor:
    """Return so many bytes, [size] uint8.

    Zeros, not what happens to lie there: masked attention multiplies padding by zero.
    """
    if device.type == "cpu":
        return host_memory.zeros(size)
    return torch.zeros(size, dtype=torch.uint8, device=device)
