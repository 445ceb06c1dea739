"""The decoder's layers on a CPU as one program: what a CUDA graph is on a GPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from weft.actors.runner.arena import Arena
from weft.actors.runner.limits import Limits
from weft.actors.runner.lora import HostLora
from weft.actors.runner.model import Batch, Model
from weft.actors.runner.own import Own
from weft.actors.runner.own_step import Logits, OwnStep
from weft.actors.runner.rows import HostBatch
from weft.kernels.collectives.reference import Alone, Collectives
from weft.kernels.collectives.shared_memory import SharedMemory
from weft.kernels.native.program import Program
from weft.kernels.paged_attention import cpu as attention
from weft.kernels.rms_norm.cpu import Chosen, rms_norm_chosen
from weft.kernels.sgmv.segments import Segments


def is_possible(model: Model, group: Collectives) -> bool:
    """Whether everything between the first layer and the last is C on this machine."""
    operations, a = model.operations, model.architecture
    is_c = operations.in_c and attention.serves(a.head_dim, operations.device)
    return is_c and isinstance(group, Alone | SharedMemory)


class Recorded:
    """Computes what ``Model.forward`` computes, the same bits, without Python between operations.

    Everything is C, recorded for as many tokens as a step may have and run for as many as it has.
    What adapters have of their own of the embedding and of the head is computed before and after.
    """

    def __init__(self, model: Model, arena: Arena, lora: HostLora, limits: Limits) -> None:
        """For a model with which it ``is_possible``."""
        self._model = model
        self._lora = lora
        self._tokens, self._positions, self._kv_slots = torch.zeros(
            3, limits.tokens, dtype=torch.int64
        )
        self._sampled = torch.zeros(limits.rows, dtype=torch.int64)
        nothing = np.zeros(1, dtype=np.int64)
        self._attention = attention.Plan(nothing[:, None], np.arange(2), nothing)
        self._segments = Segments()
        batch = Batch(
            tokens=self._tokens,
            positions=self._positions,
            kv_slots=self._kv_slots,
            attention=self._attention,
            update=lora.update_of(self._segments),
            sampled=self._sampled,
        )
        self._norms = _OwnNorms()
        self._program = Program("embedded", "tokens", "sampled")
        # Of several ranks, each has a part of the table, which C does not look into.
        self._embeds = model.architecture.shard is None
        if self._embeds:
            with self._program.record("embedded"):
                self._x = model.embed(self._tokens)
        else:
            self._x = torch.empty(limits.tokens, model.architecture.hidden)
        with self._program.record("tokens"):
            normed = model.layers(self._x, batch, arena.kv, self._norms)
        with self._program.record("sampled"):
            self._wanted = model.operations.take_rows(normed, self._sampled)
            self._logits = model.head(self._wanted)

    def forward(self, host: HostBatch, own: OwnStep | None) -> Logits | None:
        """Return the logits of a step's sampled tokens."""
        tensor = torch.from_numpy
        count, sampled = len(host.tokens), len(host.sampled)
        embeds = self._embeds and own is None
        if embeds:
            self._tokens[:count] = tensor(host.tokens)
        else:
            self._x[:count] = self._model.embed(tensor(host.tokens), own)
        self._positions[:count] = tensor(host.positions)
        self._kv_slots[:count] = tensor(host.kv_slots)
        self._sampled[:sampled] = tensor(host.sampled)
        self._attention.lay_out(host.page_table, host.starts, host.positions)
        self._segments.lay_out(host.lora_starts, host.lora_slots, host.lora_weights)
        self._lora.reserve(host)
        self._norms.lay_out(own)
        self._program.run(embedded=count if embeds else 0, tokens=count, sampled=sampled)
        return self._model.logits(self._logits[:sampled], self._wanted[:sampled], own)


class _OwnNorms:
    """Norms of adapters' own: an operation behind each of the base's, mostly for no row."""

    def __init__(self) -> None:
        self._chosen: dict[str, Chosen] = {}
        self._in_use: list[Chosen] = []
        self._laid_out: list[tuple[Own, slice]] = []

    def norm(self, normed: Tensor, x: Tensor, name: str, epsilon: float) -> None:
        """Record what replaces rows of the norm of this name."""
        self._chosen[name] = Chosen()
        rms_norm_chosen(normed, x, self._chosen[name], epsilon)

    def lay_out(self, own: OwnStep | None) -> None:
        """Replace what the adapters of a step have."""
        rows = [] if own is None else own.normed
        if rows == self._laid_out:
            return
        for chosen in self._in_use:
            chosen.lay_out([])
        norms = {} if own is None else own.norms
        self._in_use = [self._chosen[name] for name in norms]
        for name, runs in norms.items():
            self._chosen[name].lay_out(runs)
        self._laid_out = rows
