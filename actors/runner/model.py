"""The decoder's forward pass over one mixed batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.actors.runner.affine import Base, BaseSite
from weft.actors.runner.architecture import Architecture
from weft.actors.runner.lora import DOWN, GATE_UP, OUT, QKV, SITES, LoraUpdate
from weft.actors.runner.operations import Operations, Plan, Projection
from weft.actors.runner.own_step import Logits, OwnStep, Segment
from weft.actors.runner.weights import parent
from weft.actors.shards import Span
from weft.kernels.collectives.reference import Collectives


class Norms(Protocol):
    """Norms that some rows have in place of the base's."""

    def norm(self, normed: Tensor, x: Tensor, name: str, epsilon: float) -> None:
        """Replace these rows of what the base's norm makes of x."""
        ...


@dataclass(frozen=True)
class Batch:
    """One step's tokens, sorted by adapter slot, and how they lie in memory."""

    tokens: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    kv_slots: Tensor  # [T] int64, page * page_tokens + offset
    attention: Plan
    update: LoraUpdate  # of adapters
    sampled: Tensor  # [R] int64, indices of the tokens whose logits are wanted
    own: OwnStep | None = None  # what some adapters have beside updates


@dataclass(frozen=True)
class Layer:
    """One decoder layer's weights. Projections that share an input are one matrix."""

    input_norm: Tensor
    qkv: Projection
    o: Projection
    q_norm: Tensor | None
    k_norm: Tensor | None
    post_norm: Tensor
    gate_up: Projection
    down: Projection


class Model:
    """One rank's weights, and the forward pass over the KV pages of its heads.

    On a CPU everything is computed in float32; on a GPU in the weights' type. The ranks' parts of
    what o and down give are summed before they are added to the hidden state, adapters' included.
    """

    def __init__(
        self,
        architecture: Architecture,
        tensors: dict[str, Tensor],
        operations: Operations,
        group: Collectives,
        *,
        context_max: int,
        dtype: torch.dtype,
    ) -> None:
        """``architecture`` is the rank's part of the model.

        ``tensors`` as ``weights.load`` returns them; they are taken out of it one by one.
        """
        self.architecture = architecture
        device = operations.device
        self.compute_dtype = torch.float32 if device.type == "cpu" else dtype
        self._group = group
        self._device = device
        self.dtype = dtype  # of the weights
        self.operations = operations
        embedding = self._padded(tensors["embed_tokens.weight"])
        head = embedding if architecture.tied else self._padded(tensors["lm_head.weight"])
        self._embedding = self._dense(embedding)
        self._head = self._linear([head], None)
        sites: list[dict[str, BaseSite]] = [{} for _ in range(architecture.layers)]
        self.base = Base(sites, group)
        self._layers = [self._layer(tensors, i, sites[i]) for i in range(architecture.layers)]
        # What comes after each layer: the next one's norm, or the last.
        self._next_norms = [layer.input_norm for layer in self._layers[1:]]
        self._next_norms.append(self._dense(tensors["norm.weight"]))
        positions = torch.arange(context_max, dtype=torch.float32)
        angles = torch.outer(positions, architecture.frequencies)
        # Not weights: float32 everywhere.
        self._cos = (angles.cos() * architecture.rope_scale).to(device)
        self._sin = (angles.sin() * architecture.rope_scale).to(device)

    def forward(self, batch: Batch, kv: list[tuple[Tensor, Tensor]]) -> Logits | None:
        """Write the batch's KV and return the logits of its sampled tokens.

        None on all ranks but the first. ``kv`` holds each layer's keys and values, [pages,
        page_tokens, kv_heads, head_dim].
        """
        own = batch.own
        normed = self.layers(self.embed(batch.tokens, own), batch, kv, own)
        wanted = self.operations.take_rows(normed, batch.sampled)
        return self.logits(self.head(wanted), wanted, own)

    def layers(
        self, x: Tensor, batch: Batch, kv: list[tuple[Tensor, Tensor]], norms: Norms | None
    ) -> Tensor:
        """Write the batch's KV and return what the last layer gives, normed: [T, hidden].

        ``x`` is [T, hidden] and overwritten; ``norms`` are adapters' own.
        """
        a, do = self.architecture, self.operations
        scale = a.head_dim**-0.5
        normed = do.rms_norm(x, self._layers[0].input_norm, a.epsilon)
        if norms is not None:
            norms.norm(normed, x, "layers.0.input_layernorm", a.epsilon)
        for i, layer in enumerate(self._layers):
            qkv = layer.qkv(normed)
            batch.update(qkv, normed, i, QKV)
            q, k, v = self._rotated(i, qkv, batch.positions, norms)
            keys, values = kv[i]
            do.kv_write(k, v, keys, values, batch.kv_slots)
            seen = batch.attention.attend(
                q, keys, values, scale=scale, window=a.windows[i]
            ).flatten(1)
            out = layer.o(seen)
            batch.update(out, seen, i, OUT)
            self._group.all_reduce(out)
            normed = do.add_rms_norm(x, out, layer.post_norm, a.epsilon)
            if norms is not None:
                norms.norm(normed, x, f"layers.{i}.post_attention_layernorm", a.epsilon)
            gate_up = layer.gate_up(normed)
            batch.update(gate_up, normed, i, GATE_UP)
            inner = do.silu_mul(gate_up)
            out = layer.down(inner)
            batch.update(out, inner, i, DOWN)
            self._group.all_reduce(out)
            normed = do.add_rms_norm(x, out, self._next_norms[i], a.epsilon)
            if norms is not None:
                name = "norm" if i + 1 == a.layers else f"layers.{i + 1}.input_layernorm"
                norms.norm(normed, x, name, a.epsilon)
        return normed

    def head(self, wanted: Tensor) -> Tensor:
        """Return this rank's part of the base's logits, float32: [R, its tokens]."""
        return self._head(wanted).float()

    def logits(self, part: Tensor, wanted: Tensor, own: OwnStep | None) -> Logits | None:
        """Return what ``forward`` does, of what ``head`` gave for ``wanted``.

        ``part`` is changed where adapters have a head of their own, or update it.
        """
        if own is not None:
            own.update_head(part, wanted)
        logits = self._group.gather(part)
        if logits is not None:
            logits = logits[:, : self.architecture.vocabulary]
        wider = [] if own is None else own.replace_head(logits, wanted)
        return None if logits is None else Logits(logits, wider)

    def embed(self, tokens: Tensor, own: OwnStep | None = None) -> Tensor:
        """Return [T, hidden], of which each row lies on one rank."""
        shard, vocabulary = self.architecture.shard, self.architecture.vocabulary
        if shard is None:
            # An added token has a row of its own, whatever is taken first.
            known = tokens if own is None else tokens.clamp(max=vocabulary - 1)
            x = self.operations.take_rows(self._embedding, known)
            if own is not None:
                own.embed(x, tokens, Span(0, vocabulary))
            return x
        here = shard.tokens
        rows = tokens - here.start
        is_here = (rows >= 0) & (rows < here.size)
        x = F.embedding(rows.where(is_here, 0), self._embedding)
        x.masked_fill_(~is_here[:, None], 0.0)
        if own is not None:
            own.embed(x, tokens, here)
        self._group.all_reduce(x)
        return x

    def own(self, segments: Sequence[Segment]) -> OwnStep | None:
        """Return what computes with adapters' own modules in one step."""
        if not segments:
            return None
        return OwnStep(segments, self.operations, self._group, self.compute_dtype)

    def _rotated(
        self, index: int, qkv: Tensor, positions: Tensor, norms: Norms | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v as [T, heads of each, head_dim], q and k at their positions."""
        a, do, layer = self.architecture, self.operations, self._layers[index]
        heads = qkv.view(len(qkv), -1, a.head_dim)
        q, k, v = torch.split(heads, [a.heads, a.kv_heads, a.kv_heads], dim=1)
        if layer.q_norm is None or layer.k_norm is None:
            do.rotary_(heads[:, : a.heads + a.kv_heads], self._cos, self._sin, positions)
        else:
            before = q, k
            q = do.rms_norm(q, layer.q_norm, a.epsilon)
            k = do.rms_norm(k, layer.k_norm, a.epsilon)
            if norms is not None:
                norms.norm(q, before[0], f"layers.{index}.self_attn.q_norm", a.epsilon)
                norms.norm(k, before[1], f"layers.{index}.self_attn.k_norm", a.epsilon)
            do.rotary_(q, self._cos, self._sin, positions)
            do.rotary_(k, self._cos, self._sin, positions)
        return q, k, v

    def _layer(self, tensors: dict[str, Tensor], index: int, sites: dict[str, BaseSite]) -> Layer:
        def take(name: str) -> Tensor | None:
            return tensors.pop(f"layers.{index}.{name}", None)

        def fused(site: str) -> Projection:
            modules = SITES[site]
            found = [take(f"{parent(m)}.{m}.weight") for m in modules]
            weights = [w for w in found if w is not None]
            biases = [take(f"{parent(m)}.{m}.bias") for m in modules]
            bias = [b for b in biases if b is not None]
            projection = self._linear(weights, bias or None)
            sites[site] = BaseSite(
                projection,
                torch.cat([_squares(w) for w in weights]).to(self._device),
                torch.cat(bias).to(self.dtype).to(self._device, torch.float32) if bias else None,
                self.compute_dtype,
            )
            return projection

        def dense(name: str) -> Tensor | None:
            tensor = take(name)
            return None if tensor is None else self._dense(tensor)

        input_norm, post_norm = (
            dense("input_layernorm.weight"),
            dense("post_attention_layernorm.weight"),
        )
        assert input_norm is not None
        assert post_norm is not None
        return Layer(
            input_norm=input_norm,
            qkv=fused("qkv"),
            o=fused("o"),
            q_norm=dense("self_attn.q_norm.weight"),
            k_norm=dense("self_attn.k_norm.weight"),
            post_norm=post_norm,
            gate_up=fused("gate_up"),
            down=fused("down"),
        )

    def _linear(self, weights: list[Tensor], biases: list[Tensor] | None) -> Projection:
        weight = torch.cat(weights).to(self._device, self.dtype)
        bias = None if biases is None else torch.cat(biases).to(self._device, self.dtype)
        return self.operations.linear(weight, bias)

    def _padded(self, rows: Tensor) -> Tensor:
        """Return a matrix with a row for each token of this rank, and as many as on any rank."""
        shard = self.architecture.shard
        return rows if shard is None else F.pad(rows, (0, 0, 0, shard.tokens_padded - len(rows)))

    def _dense(self, tensor: Tensor) -> Tensor:
        """Round to the weights' type, then hold in the type of the computation."""
        return tensor.to(self.dtype).to(self._device, self.compute_dtype)


def _squares(weight: Tensor) -> Tensor:
    """Return the sum of the squares of each row, float32."""
    lengths: Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32)
    return lengths.square()
