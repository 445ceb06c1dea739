"""Executes steps with torch on one device: a whole model, or one rank's part of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from weft.actors.runner import architecture as architectures
from weft.actors.runner import backend as backends
from weft.actors.runner import warmup, weights
from weft.actors.runner.ahead import Ahead
from weft.actors.runner.architecture import UnsupportedModel
from weft.actors.runner.arena import Arena, PageShape, page_shape
from weft.actors.runner.backend import Backend
from weft.actors.runner.eager import Eager, Executor, Parts
from weft.actors.runner.engine import Done, Launched
from weft.actors.runner.limits import Limits
from weft.actors.runner.lora import LoraSlots, granules_max
from weft.actors.runner.model import Model
from weft.actors.runner.rows import RowTable
from weft.kernels.collectives.reference import Alone, Collectives
from weft.runtime.config import Config
from weft.runtime.histogram import Histogram
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
        backend: Backend | None = None,
        *,
        first_device: int = 0,
    ) -> None:
        """``group`` is this rank's end of its tensor-parallel group; None: there is no other.

        ``first_device`` is that of rank 0, where there are GPUs.
        ``backend``: what to compute with; None: with the best that the device has.
        """
        self._group = group = group or Alone()
        folder = Path(config.model)
        self._device = device_of(config, first_device + group.rank)
        if self._device.type == "cpu" and config.threads:
            torch.set_num_threads(config.threads)
        whole = architectures.read(folder)
        architecture = whole if group.size == 1 else whole.part(group.rank, group.size)
        self._architecture = architecture
        self._backend = backend or backends.choose(config, self._device)
        dtype = whole.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
        tensors = weights.load(folder, whole, progress, architecture.shard)
        context_max = config.max_model_len or architecture.context_max
        self._model = Model(
            architecture,
            tensors,
            self._backend.operations,
            group,
            context_max=context_max,
            dtype=dtype,
        )
        shape = page_shape(
            architecture, config.block_size, self._model.compute_dtype, self._lora_dtype(config)
        )
        # Rank 0 has most; where the others have less, the rest of their pages is not used.
        widest = whole.part(0, group.size)
        self._adapter_pages = -(-granules_max(widest, config.max_lora_rank) // shape.granules)
        self._slots = config.max_loaded_loras
        limits = Limits(
            rows=config.max_num_seqs,
            tokens=config.max_num_batched_tokens,
            row_pages=-(-context_max // config.block_size),
            adapters=config.max_loras_per_batch,
            rank=config.max_lora_rank,
            row_adapters=config.row_loras_max,
        )
        pages = self._pages(config, shape, limits)
        limits = limits._replace(row_pages=min(limits.row_pages, pages))
        self._rows = RowTable(
            limits.rows, limits.row_pages, config.block_size, row_adapters=limits.row_adapters
        )
        parts = self._parts(shape, pages, limits)
        self._lora = parts.lora
        self._arena = parts.arena
        self._executor: Executor
        if self._backend.ahead is None:
            self._executor = Eager(parts, self._rows, limits)
        else:
            self._executor = ahead = Ahead(parts, limits, self._device, self._backend.ahead)
            scratch = warmup.Scratch(pages, config.block_size)
            with torch.inference_mode():
                seconds = warmup.capture(ahead, scratch, ahead.graphs.kinds)
            log.info("%d graphs of decode steps in %.1f s", len(ahead.graphs.kinds), seconds)
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
    def launch(self, step: Step) -> Launched:
        """Apply what the step changes, and begin to compute it."""
        started_ns = time.perf_counter_ns()
        executor = self._executor
        executor.make_way(step)
        for load in step.loads:
            executor.load(load)
        if step.loads:
            # The files may be gone once rank 0 answers, so every rank must have opened them.
            self._group.all_reduce(torch.zeros(1))
        for row in step.leaves:
            executor.leave(row)
        self._rows.apply(step)
        for join in step.joins:
            executor.join(join)
        host = self._rows.lay_out(step)
        if host is None:
            return Done(StepDone(step.step, [], loading=executor.loading))
        return executor.launch(step.step, host, started_ns)

    def execute(self, step: Step) -> StepDone:
        """Compute a step, and wait for it."""
        return self.launch(step).collect()

    @property
    def loads(self) -> Histogram:
        """How long adapters took to be copied to the device."""
        self._executor.settle()
        return self._lora.times

    def counters(self) -> dict[str, float]:
        """Return what is in use."""
        self._executor.settle()
        used = self._rows.adapter_slots
        assert all(self._lora.digests[slot] is not None for slot in used)
        return {
            "rows": self._rows.joined,
            "page_references": self._rows.pages,
            "adapter_slots_used": len(used),
            "adapter_slots_filled": sum(digest is not None for digest in self._lora.digests),
        }

    def _parts(self, shape: PageShape, pages: int, limits: Limits) -> Parts:
        """Return what computes on an arena of so many pages, and one for padding on a device."""
        layers, compute_dtype = self._architecture.layers, self._model.compute_dtype
        scratch = 0 if self._backend.ahead is None else 1
        arena = Arena(shape, layers, pages + scratch, self._device)
        lora = LoraSlots(
            self._architecture,
            arena.granules(),
            partial(self._backend.lora, limits=limits, compute_dtype=compute_dtype),
            self._model.base,
            slots=self._slots,
            pages_max=self._adapter_pages,
        )
        attention = self._backend.attention(self._architecture, limits, shape.tokens, compute_dtype)
        return Parts(self._model, arena, lora, attention, self._group)

    def _lora_dtype(self, config: Config) -> torch.dtype:
        if config.lora_dtype != "auto":
            dtype: torch.dtype = getattr(torch, config.lora_dtype)
        else:
            dtype = self._model.dtype
        # The kernels for CPUs widen bfloat16 in registers; half a float they do not know.
        is_half_on_cpu = self._device.type == "cpu" and dtype == torch.float16
        return torch.float32 if is_half_on_cpu else dtype

    def _pages(self, config: Config, shape: PageShape, limits: Limits) -> int:
        page_bytes = self._architecture.layers * shape.bytes
        pages = self._arena_bytes(config, shape, limits) // page_bytes
        if pages < 2:
            raise UnsupportedModel(
                f"the KV cache has room for {max(pages, 0)} pages of {page_bytes} bytes: raise "
                "kv_cache_memory_mib (CPU) or gpu_memory_utilization (CUDA), or lower block_size"
            )
        return pages

    def _arena_bytes(self, config: Config, shape: PageShape, limits: Limits) -> int:
        if self._device.type == "cpu":
            return config.kv_cache_memory_mib * MIB // config.runners
        assert self._backend.ahead is not None
        ahead = self._backend.ahead
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self._device)
        with torch.inference_mode():
            needed = warmup.memory_needed(
                lambda: Ahead(self._parts(shape, 1, limits), limits, self._device, ahead),
                limits,
                warmup.Scratch(1, shape.tokens),
            )
        allowed = int(free - total * (1 - config.gpu_memory_utilization)) - needed
        # One more page, of which only padding takes notice.
        allowed -= self._architecture.layers * shape.bytes
        log.info(
            "of %.0f MiB: %.0f used by weights and others, %.0f for steps and graphs, %.0f for "
            "pages",
            total / MIB, (total - free) / MIB, needed / MIB, max(0, allowed) / MIB,
        )  # fmt: skip
        return allowed


def device_of(config: Config, index: int) -> torch.device:
    """Return the device of one runner. Raises ``UnsupportedModel`` if there are not enough."""
    devices = torch.cuda.device_count() if config.device != "cpu" else 0
    if config.device == "cuda" and not devices:
        raise UnsupportedModel("device is cuda, and torch finds no CUDA device: use cpu or auto")
    if not devices:
        return torch.device("cpu")
    if devices < config.runners:
        size = f"tensor_parallel_size is {config.tensor_parallel_size}"
        if config.data_parallel_size > 1:
            size += f", data_parallel_size {config.data_parallel_size}"
        raise UnsupportedModel(
            f"{size}, and there are {devices} CUDA devices: lower it, or let device be cpu"
        )
    return torch.device("cuda", index)
