"""Executes steps with torch on one device: a whole model, or one rank's part of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from weft.actors.runner import architecture as architectures
from weft.actors.runner import operations, weights
from weft.actors.runner.architecture import UnsupportedModel
from weft.actors.runner.arena import Arena, PageShape, page_shape
from weft.actors.runner.loads import Loads
from weft.actors.runner.lora import LoraSlots, granules_max
from weft.actors.runner.model import Batch, Model
from weft.actors.runner.rows import HostBatch, RowTable
from weft.actors.runner.sampler import Drawn, Sampler
from weft.kernels.collectives.reference import Alone, Collectives
from weft.kernels.sgmv.segments import Segments
from weft.runtime.config import Config
from weft.runtime.messages import RunnerReady, Step, StepDone

MIB = 1024 * 1024

log = logging.getLogger("weft.runner")


class TorchEngine:
    """The weights, the KV pages, the adapter slots and the rows of one device.

    The ranks of a group apply the same steps to the same rows; rank 0 samples for all of them.
    Raises ``UnsupportedModel`` at construction for what the user can mend.
    """

    def __init__(
        self,
        config: Config,
        progress: Callable[[float], None],
        group: Collectives | None = None,
    ) -> None:
        """``group`` is this rank's end of its tensor-parallel group; None: there is no other."""
        self._group = group = group or Alone()
        folder = Path(config.model)
        self._device = device_of(config, group.rank)
        if self._device.type == "cpu" and config.threads:
            torch.set_num_threads(config.threads)
        whole = architectures.read(folder)
        architecture = whole if group.size == 1 else whole.part(group.rank, group.size)
        dtype = whole.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
        tensors = weights.load(folder, whole, progress, architecture.shard)
        context_max = config.max_model_len or architecture.context_max
        chosen = operations.choose(self._device, int8=config.quantization == "int8")
        self._model = Model(
            architecture,
            tensors,
            chosen,
            group,
            context_max=context_max,
            dtype=dtype,
        )
        shape = page_shape(
            architecture, config.block_size, self._model.compute_dtype, self._lora_dtype(config)
        )
        # Rank 0 has most; where the others have less, the rest of their pages is not used.
        widest = whole.part(0, group.size)
        per_adapter = -(-granules_max(widest, config.max_lora_rank) // shape.granules)
        pages = self._pages(config, shape, architecture.layers)
        self._arena = Arena(shape, architecture.layers, pages, self._device)
        pages_max = min(pages, -(-context_max // config.block_size))
        self._rows = RowTable(config.max_num_seqs, pages_max, config.block_size)
        self._lora = LoraSlots(
            architecture,
            self._arena.granules(),
            slots=config.max_loaded_loras,
            pages_max=per_adapter,
        )
        self._loads = Loads(self._lora)
        self._sampler = Sampler(architecture.vocabulary, self._device, chosen.sample)
        self._plan = chosen.planner(architecture, config.block_size, self._model.compute_dtype)
        self._ready = RunnerReady(
            group.rank, pages, config.block_size, config.max_loaded_loras, shape.granules
        )
        log.info(
            "%s on %s: %d pages of %d tokens or %d granules of adapters (%.0f MiB), weights %s",
            architecture.family, self._device, pages, config.block_size, shape.granules,
            self._arena.memory.nbytes / MIB, dtype,
        )  # fmt: skip

    def ready(self) -> RunnerReady:
        """Return what the scheduler must know about this device."""
        return self._ready

    @torch.inference_mode()
    def execute(self, step: Step) -> StepDone:
        """Apply what the step changes, compute it, and return its tokens."""
        started = time.perf_counter_ns()
        self._loads.make_way(step)
        for load in step.loads:
            self._loads.begin(load)
        if step.loads:
            # The files may be gone once rank 0 answers, so every rank must have opened them.
            self._group.all_reduce(torch.zeros(1))
        for row in step.leaves:
            self._sampler.leave(row)
        self._rows.apply(step)
        for join in step.joins:
            self._sampler.join(
                join.row,
                join.sampling,
                choice=join.choice,
                prompt_tokens=join.prompt_tokens,
                history=join.history,
            )
        host = self._rows.lay_out(step)
        if host is None:
            return StepDone(step.step, [])
        self._loads.wait(host.lora_slots)
        logits = self._model.forward(self._batch(host), self._arena.kv, self._lora)
        rows = host.sampled_rows
        if logits is None:
            drawn = Drawn(torch.empty(len(rows), dtype=torch.int64), [], [])
        else:
            drawn = self._sampler.sample(logits, rows.tolist(), self._rows.next_positions(rows))
        self._group.broadcast(drawn.tokens)
        self._rows.feed(rows, drawn.tokens.numpy())
        elapsed_us = (time.perf_counter_ns() - started) // 1000
        return StepDone(step.step, drawn.tokens.tolist(), drawn.failed, drawn.logprobs, elapsed_us)

    def counters(self) -> dict[str, float]:
        """Return what is in use."""
        self._loads.wait()
        used = self._rows.adapter_slots
        assert all(self._lora.digests[slot] is not None for slot in used)
        return {
            "rows": self._rows.joined,
            "page_references": self._rows.pages,
            "adapter_slots_used": len(used),
            "adapter_slots_filled": sum(digest is not None for digest in self._lora.digests),
        }

    def _batch(self, host: HostBatch) -> Batch:
        def tensor(array: operations.Ints) -> Tensor:
            return torch.from_numpy(array).to(self._device)

        return Batch(
            tokens=tensor(host.tokens),
            positions=tensor(host.positions),
            kv_slots=tensor(host.kv_slots),
            plan=self._plan(host.page_table, host.starts, host.positions),
            segments=Segments(host.lora_starts, host.lora_slots),
            sampled=tensor(host.sampled),
        )

    def _lora_dtype(self, config: Config) -> torch.dtype:
        if config.lora_dtype != "auto":
            dtype: torch.dtype = getattr(torch, config.lora_dtype)
        else:
            dtype = self._model.dtype
        # The kernels for CPUs widen bfloat16 in registers; half a float they do not know.
        is_half_on_cpu = self._device.type == "cpu" and dtype == torch.float16
        return torch.float32 if is_half_on_cpu else dtype

    def _pages(self, config: Config, shape: PageShape, layers: int) -> int:
        page_bytes = layers * shape.bytes
        pages = _arena_bytes(config, self._device) // page_bytes
        if pages < 2:
            raise UnsupportedModel(
                f"the KV cache has room for {pages} pages of {page_bytes} bytes: raise "
                "kv_cache_memory_mib (CPU) or gpu_memory_utilization (CUDA), or lower block_size"
            )
        return pages


def device_of(config: Config, rank: int) -> torch.device:
    """Return the device of one rank. Raises ``UnsupportedModel`` if there is none for it."""
    devices = torch.cuda.device_count() if config.device != "cpu" else 0
    if config.device == "cuda" and not devices:
        raise UnsupportedModel("device is cuda, and torch finds no CUDA device: use cpu or auto")
    if not devices:
        return torch.device("cpu")
    if devices < config.tensor_parallel_size:
        raise UnsupportedModel(
            f"tensor_parallel_size is {config.tensor_parallel_size}, and there are {devices} CUDA "
            "devices: lower it, or let device be cpu"
        )
    return torch.device("cuda", rank)


def _arena_bytes(config: Config, device: torch.device) -> int:
    if device.type == "cpu":
        return config.kv_cache_memory_mib * MIB // config.tensor_parallel_size
    free, total = torch.cuda.mem_get_info(device)
    return max(0, int(free - total * (1 - config.gpu_memory_utilization)))
