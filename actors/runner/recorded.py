"""The decoder's layers on a CPU as one program: what a CUDA graph is on a GPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from weft.actors.runner.arena import Arena
from weft.actors.runner.lora import HostLora
from weft.actors.runner.model import Batch, Model
from weft.actors.runner.rows import HostBatch
from weft.kernels.collectives.reference import Alone, Collectives
from weft.kernels.collectives.shared_memory import SharedMemory
from weft.kernels.native.program import Program
from weft.kernels.paged_attention import cpu as attention
from weft.kernels.sgmv.segments import Segments


def is_possible(model: Model, group: Collectives) -> bool:
    """Whether everything between the first layer and the last is C on this machine."""
    operations, a = model.operations, model.architecture
    is_c = operations.in_c and attention.serves(a.head_dim, operations.device)
    return is_c and isinstance(group, Alone | SharedMemory)


class Recorded:
    """Computes what ``Model.forward`` computes, the same bits, without Python between operations.

    Everything is C, recorded for as many tokens as a step may have and run for as many as it has.
    """

    def __init__(self, model: Model, arena: Arena, lora: HostLora, *, tokens_max: int) -> None:
        """For a model with which it ``is_possible``."""
        self._model = model
        self._lora = lora
        self._x = torch.empty(tokens_max, model.architecture.hidden)
        self._positions = torch.zeros(tokens_max, dtype=torch.int64)
        self._kv_slots = torch.zeros(tokens_max, dtype=torch.int64)
        nothing = np.zeros(1, dtype=np.int64)
        self._attention = attention.Plan(nothing[:, None], np.arange(2), nothing)
        self._segments = Segments()
        self._program = Program("tokens")
        batch = Batch(
            tokens=self._positions,
            positions=self._positions,
            kv_slots=self._kv_slots,
            attention=self._attention,
            update=lora.update_of(self._segments),
            sampled=self._positions,
        )
        with self._program.record("tokens"):
            self._normed = model.layers(self._x, batch, arena.kv)

    def forward(self, host: HostBatch) -> Tensor | None:
        """Return the logits of a step's sampled tokens."""
        tensor = torch.from_numpy
        count = len(host.tokens)
        self._x[:count] = self._model.embed(tensor(host.tokens))
        self._positions[:count] = tensor(host.positions)
        self._kv_slots[:count] = tensor(host.kv_slots)
        self._attention.lay_out(host.page_table, host.starts, host.positions)
        self._segments.lay_out(host.lora_starts, host.lora_slots)
        self._lora.reserve(count)
        self._program.run(tokens=count)
        return self._model.logits(self._normed[:count], tensor(host.sampled))
