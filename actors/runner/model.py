"""The decoder's forward pass over one mixed batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.actors.runner.architecture import Architecture
from weft.actors.runner.lora import LoraSlots
from weft.actors.runner.weights import parent
from weft.kernels.collectives.reference import Collectives
from weft.kernels.kv_write.reference import kv_write
from weft.kernels.linear.cpu import PackedLinear
from weft.kernels.linear.reference import Linear
from weft.kernels.paged_attention import cpu, padded
from weft.kernels.rms_norm.reference import rms_norm
from weft.kernels.rotary.reference import rotary
from weft.kernels.sgmv.segments import Segments
from weft.kernels.silu_mul import cpu as native_silu_mul
from weft.kernels.silu_mul import reference as silu_mul


@dataclass(frozen=True)
class Batch:
    """One step's tokens, sorted by adapter slot, and how they lie in memory."""

    tokens: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    kv_slots: Tensor  # [T] int64, page * page_tokens + offset
    plan: cpu.Plan | padded.Plan  # of attention
    segments: Segments  # of adapters; base tokens come first and are in none
    sampled: Tensor  # [R] int64, indices of the tokens whose logits are wanted


@dataclass(frozen=True)
class Layer:
    """One decoder layer's weights. Projections that share an input are one matrix."""

    input_norm: Tensor
    qkv: Linear | PackedLinear
    o: Linear | PackedLinear
    q_norm: Tensor | None
    k_norm: Tensor | None
    post_norm: Tensor
    gate_up: Linear | PackedLinear
    down: Linear | PackedLinear


class Model:
    """One rank's weights, and the forward pass over the KV pages of its heads.

    On a CPU everything is computed in float32; on a GPU in the weights' type. The ranks' parts of
    what o and down give are summed before they are added to the hidden state, adapters' included.
    """

    def __init__(
        self,
        architecture: Architecture,
        tensors: dict[str, Tensor],
        group: Collectives,
        *,
        context_max: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """``architecture`` is the rank's part of the model.

        ``tensors`` as ``weights.load`` returns them; they are taken out of it one by one.
        """
        self.architecture = architecture
        self.compute_dtype = torch.float32 if device.type == "cpu" else dtype
        self._group = group
        self._device = device
        self.dtype = dtype  # of the weights
        is_native = device.type == "cpu" and native_silu_mul.library() is not None
        self._silu_mul = native_silu_mul.silu_mul if is_native else silu_mul.silu_mul
        embedding = self._padded(tensors["embed_tokens.weight"])
        head = embedding if architecture.tied else self._padded(tensors["lm_head.weight"])
        self._embedding = self._dense(embedding)
        self._head = self._linear([head], None)
        self._norm = self._dense(tensors["norm.weight"])
        self._layers = [self._layer(tensors, i) for i in range(architecture.layers)]
        positions = torch.arange(context_max, dtype=torch.float32)
        angles = torch.outer(positions, architecture.frequencies)[:, None, :]
        # Not weights: rounded by the computation alone.
        self._cos = (angles.cos() * architecture.rope_scale).to(device, self.compute_dtype)
        self._sin = (angles.sin() * architecture.rope_scale).to(device, self.compute_dtype)

    def forward(
        self, batch: Batch, kv: list[tuple[Tensor, Tensor]], lora: LoraSlots
    ) -> Tensor | None:
        """Write the batch's KV and return the logits of its sampled tokens: [R, vocabulary].

        None on all ranks but the first. ``kv`` holds each layer's keys and values, [pages,
        page_tokens, kv_heads, head_dim].
        """
        a = self.architecture
        scale = a.head_dim**-0.5
        x = self._embed(batch.tokens)
        cos, sin = self._cos[batch.positions], self._sin[batch.positions]
        for i, layer in enumerate(self._layers):
            normed = rms_norm(x, layer.input_norm, a.epsilon)
            qkv = layer.qkv(normed)
            lora.add(qkv, normed, "qkv", i, batch.segments)
            q, k, v = torch.split(qkv, [a.q_size, a.kv_size, a.kv_size], dim=-1)
            q, k = self._heads(q, layer.q_norm), self._heads(k, layer.k_norm)
            keys, values = kv[i]
            kv_write(rotary(k, cos, sin), self._heads(v, None), keys, values, batch.kv_slots)
            seen = batch.plan.attend(
                rotary(q, cos, sin), keys, values, scale=scale, window=a.windows[i]
            ).flatten(1)
            out = layer.o(seen)
            lora.add(out, seen, "o", i, batch.segments)
            self._group.all_reduce(out)
            x = x + out
            normed = rms_norm(x, layer.post_norm, a.epsilon)
            gate_up = layer.gate_up(normed)
            lora.add(gate_up, normed, "gate_up", i, batch.segments)
            inner = self._silu_mul(gate_up)
            out = layer.down(inner)
            lora.add(out, inner, "down", i, batch.segments)
            self._group.all_reduce(out)
            x = x + out
        final = rms_norm(x[batch.sampled], self._norm, a.epsilon)
        logits = self._group.gather(self._head(final).float())
        return None if logits is None else logits[:, : a.vocabulary]

    def _embed(self, tokens: Tensor) -> Tensor:
        """Return [T, hidden], of which each row lies on one rank."""
        shard = self.architecture.shard
        if shard is None:
            return F.embedding(tokens, self._embedding)
        rows = tokens - shard.tokens.start
        is_here = (rows >= 0) & (rows < shard.tokens.size)
        x = F.embedding(rows.where(is_here, 0), self._embedding)
        x.masked_fill_(~is_here[:, None], 0.0)
        self._group.all_reduce(x)
        return x

    def _heads(self, x: Tensor, norm: Tensor | None) -> Tensor:
        x = x.view(len(x), -1, self.architecture.head_dim)
        return x if norm is None else rms_norm(x, norm, self.architecture.epsilon)

    def _layer(self, tensors: dict[str, Tensor], index: int) -> Layer:
        def take(name: str) -> Tensor | None:
            return tensors.pop(f"layers.{index}.{name}", None)

        def fused(*modules: str) -> Linear | PackedLinear:
            weights = [take(f"{parent(m)}.{m}.weight") for m in modules]
            biases = [take(f"{parent(m)}.{m}.bias") for m in modules]
            return self._linear(
                [w for w in weights if w is not None], [b for b in biases if b is not None] or None
            )

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
            qkv=fused("q_proj", "k_proj", "v_proj"),
            o=fused("o_proj"),
            q_norm=dense("self_attn.q_norm.weight"),
            k_norm=dense("self_attn.k_norm.weight"),
            post_norm=post_norm,
            gate_up=fused("gate_proj", "up_proj"),
            down=fused("down_proj"),
        )

    def _linear(self, weights: list[Tensor], biases: list[Tensor] | None) -> Linear | PackedLinear:
        weight = torch.cat(weights).to(self._device, self.dtype)
        bias = None if biases is None else torch.cat(biases).to(self._device, self.dtype)
        if self._device.type == "cpu":
            return PackedLinear(weight, bias)
        return Linear(weight, bias)

    def _padded(self, rows: Tensor) -> Tensor:
        """Return a matrix with a row for each token of this rank, and as many as on any rank."""
        shard = self.architecture.shard
        return rows if shard is None else F.pad(rows, (0, 0, 0, shard.tokens_padded - len(rows)))

    def _dense(self, tensor: Tensor) -> Tensor:
        """Round to the weights' type, then hold in the type of the computation."""
        return tensor.to(self.dtype).to(self._device, self.compute_dtype)
