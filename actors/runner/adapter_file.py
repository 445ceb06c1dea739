"""The adapter store's file of one adapter, in the runner's memory."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import KeysView
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft.kernels.sgmv.host_matrix import HostMatrix

_LENGTH_BYTES = 8
_TYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
}


class AdapterFile:
    """A normalised file, mapped: its name may vanish while it is read.

    ``layers.{i}.{module}.A`` [rank, in], ``.B`` [out, rank], and perhaps ``.bias`` of B or DoRA's
    ``.magnitude``, [out]; each module's scale is in the metadata. ``embed_tokens`` and ``lm_head``
    may have A and B too, and ``.ids`` [rows] with ``.rows`` [rows, hidden]. Norms: [size].

    It is safetensors, written by this run's own store, and so it is trusted. Unlike that library's
    reader, this one says where matrices lie without an operation of torch.
    """

    def __init__(self, descriptor: int, digest: str) -> None:
        """Map the file of the adapter ``digest``; the descriptor may be closed afterwards."""
        # A private copy of what is written to, which nothing is: torch warns of other memory.
        self._memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
        self._address: int = np.frombuffer(self._memory, dtype=np.uint8).ctypes.data
        length = int.from_bytes(self._memory[:_LENGTH_BYTES], "little")
        self._start = _LENGTH_BYTES + length
        self._entries: dict[str, Any] = json.loads(self._memory[_LENGTH_BYTES : self._start])
        metadata: dict[str, str] = self._entries.pop("__metadata__")
        assert metadata["digest"] == digest, f"the file of {metadata['digest']} is not {digest}'s"
        self.digest = digest
        self.scales: dict[str, float] = json.loads(metadata["scales"])
        """Of each module's update."""

    @property
    def names(self) -> KeysView[str]:
        """Of the tensors."""
        return self._entries.keys()

    def matrix(self, name: str) -> HostMatrix:
        """Return where a matrix lies."""
        dtype, (rows, columns), start = self._entry(name)
        return HostMatrix(self._memory, self._address + start, dtype, (rows, columns), (columns, 1))

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, whose numbers are read when they are looked at."""
        dtype, shape, start = self._entry(name)
        count = math.prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=start).view(shape)

    def _entry(self, name: str) -> tuple[torch.dtype, list[int], int]:
        entry = self._entries[name]
        return _TYPES[entry["dtype"]], entry["shape"], self._start + entry["data_offsets"][0]
