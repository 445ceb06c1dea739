"""Whole decode steps of the runner's engine, and the share that adapters have in them."""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from tests.actors.runner.engines import save_adapter
from tests.actors.scheduler_harness import GREEDY
from tests.bench.gpu import checkpoints
from tests.bench.table import markdown
from weft.actors.adapters.base import LinearShape
from weft.actors.adapters.granules import Size, of_module
from weft.actors.runner import architecture
from weft.actors.runner.torch_engine import TorchEngine
from weft.actors.runner.weights import MODULES
from weft.runtime.config import Config
from weft.runtime.messages import AdapterLoad, Chunk, Join, Step

MODELS = ("0.5b", "8b")
RANKS = (8, 16, 32, 64)  # of adapters in turn
PROMPT_TOKENS = 128
PAGE_TOKENS = 16
STEP_TOKENS = 512
WARM_STEPS = 10  # the first of a batch compile what start has not


class Bench:
    """One engine with all adapters loaded."""

    def __init__(self, name, folder, *, rows_max, adapters, device):
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        model = folder / name
        checkpoints.save(name, model, dtype)
        config = Config(
            model=str(model), device=device, max_lora_rank=max(RANKS), block_size=PAGE_TOKENS,
            max_loras_per_batch=max(1, adapters), max_loaded_loras=max(1, adapters),
            max_num_seqs=rows_max, max_num_batched_tokens=max(STEP_TOKENS, rows_max),
            max_model_len=1024, kv_cache_memory_mib=4096,
        )  # fmt: skip
        self._engine = TorchEngine(config, lambda share, what: None)
        ready = self._engine.ready()
        self._free = list(range(ready.pages))
        self._steps = 0
        files = [save_adapter(folder, model, f"{rank}", rank=rank) for rank in RANKS]
        shapes = architecture.read(model)
        for slot in range(adapters):
            which = slot % len(RANKS)
            count = -(-_granules(shapes, RANKS[which]) // ready.page_granules)
            pages, self._free = self._free[:count], self._free[count:]
            self._step(loads=[AdapterLoad(slot, f"{RANKS[which]}", files[which], pages)])

    def decode(self, rows, adapters, steps):
        """Return the median seconds from step to step while ``rows`` rows decode.

        A step is launched before the one before is waited for, as the runner does. Row i has
        adapter ``i % adapters``; without adapters all are the base's.
        """
        self._prefill(rows, adapters, steps)
        for _ in range(WARM_STEPS):
            self._step()
        taken = []
        under_way = self._launch()
        started = time.perf_counter()
        for _ in range(steps):
            after = self._launch()
            assert len(under_way.collect().tokens) == rows
            ended = time.perf_counter()
            taken.append(ended - started)
            under_way, started = after, ended
        under_way.collect()
        self._step(leaves=list(range(rows)))
        return statistics.median(taken)

    def _prefill(self, rows, adapters, steps):
        """Let all rows join; those that are done go on decoding while others are computed."""
        per_step = max(1, (STEP_TOKENS - rows) // PROMPT_TOKENS)
        tokens = PROMPT_TOKENS + rows + WARM_STEPS + steps + 3
        pages = -(-tokens // PAGE_TOKENS)
        assert rows * pages <= len(self._free), f"{rows} rows have no room of {pages} pages each"
        rng = np.random.default_rng(0)
        joins, chunks = [], []
        for row in range(rows):
            used = [(row % adapters, 1.0)] if adapters else []
            own = self._free[row * pages : (row + 1) * pages]
            joins.append(Join(row, used, 0, own, GREEDY, 0, PROMPT_TOKENS, None))
            prompt = rng.integers(4, 400, size=PROMPT_TOKENS).tolist()
            chunks.append(Chunk(row, 0, prompt, True))
        for first in range(0, rows, per_step):
            some = slice(first, first + per_step)
            self._step(joins=joins[some], chunks=chunks[some])

    def _step(self, **changes):
        return self._launch(**changes).collect()

    def _launch(self, **changes):
        self._steps += 1
        return self._engine.launch(Step(self._steps, **changes))


def run(name, batches, *, steps, device):
    """Return a table over ``batches``: (rows, adapters) each."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            name,
            Path(folder),
            rows_max=max(rows for rows, _ in batches),
            adapters=max(adapters for _, adapters in batches),
            device=device,
        )
        taken = {batch: bench.decode(*batch, steps) for batch in batches}
    lines = []
    for (rows, adapters), seconds in taken.items():
        base = taken[rows, 0]
        told = f"{seconds * 1e3:.2f}", f"{rows / seconds:.0f}", f"{1 - base / seconds:.0%}"
        lines.append((rows, adapters, *told))
    header = ("rows", "adapters", "ms a step", "tokens a second", "LoRA's share")
    return markdown(header, lines)


def pairs(rows, adapters):
    """Return all batches that have no more adapters than rows; each without any, too."""
    return [(count, each) for count in rows for each in (0, *adapters) if each <= count]


def _granules(shapes, rank):
    linear = (LinearShape(*reversed(shapes.module_shape(module))) for module in MODULES)
    return sum(of_module(Size(rank), each) for each in linear)
