"""What one row costs all others of a decode step: a sum of adapters, or modules of its own."""

import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from tests.actors.scheduler_harness import GREEDY
from tests.actors.test_every_kind_of_adapter import stored
from tests.bench import models
from tests.bench.table import markdown
from tests.checkpoints import MODULES, save_adapter
from weft.actors.runner.torch_engine import TorchEngine
from weft.runtime.config import Config
from weft.runtime.messages import AdapterLoad, Chunk, Join, Step

ROWS = 64
PROMPT_TOKENS = 32
PAGE_TOKENS = 16
WARM_STEPS, STEPS = 8, 24  # of one batch in one round
JOIN_ROWS = 8  # that begin in one step
ROW_TOKENS = PROMPT_TOKENS + ROWS // JOIN_ROWS + WARM_STEPS + STEPS + 1
ROW_PAGES = -(-ROW_TOKENS // PAGE_TOKENS)
DEMO_ADAPTERS = ("sql", "math", "function", "emotion")
RANK = 8
LINEAR = list(MODULES)
# What the last row may have; the others have a demonstration's adapter, or none, in turns.
OWN = {
    "an adapter with a token that it has added": {"added": 1},
    "an adapter with LoRA of embedding and head": {
        "target_modules": [*LINEAR, "embed_tokens", "lm_head"]
    },
    "an adapter with norms of its own": {
        "modules_to_save": ["input_layernorm", "post_attention_layernorm", "norm"]
    },
    "an adapter with a head of its own": {"modules_to_save": ["lm_head"]},
}


def run(*, rounds, threads):
    """Return the table."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as place:
        bench = _Bench(Path(place))
        last = {
            "one adapter": ["sql"],
            "a sum of two": ["sql", "emotion"],
            "a sum of four": list(DEMO_ADAPTERS),
            **{what: [what] for what in OWN},
        }
        taken = {what: [] for what in last}
        for round_ in range(rounds + 1):
            for what, names in last.items():
                seconds = bench.step_seconds(names)
                if round_:  # what comes first warms up
                    taken[what].append(seconds)
    plain = taken["one adapter"]
    rows = []
    for what, each in taken.items():
        ratios = [mine / other for mine, other in zip(each, plain, strict=True)]
        cells = f"{statistics.median(each) * 1e3:.2f}", f"{statistics.median(ratios):.2f}"
        rows.append((what, *cells))
    return markdown(("the last row has", "step, ms", "to one adapter"), rows)


class _Bench:
    """An engine with all adapters on the device."""

    def __init__(self, place):
        folders = {name: models.DEMO.parent / "adapters" / name for name in DEMO_ADAPTERS}
        folders |= {what: _own(place / f"own{i}", what) for i, what in enumerate(OWN)}
        digests, acquired = stored(models.DEMO, folders, place, 1)
        self._engine = TorchEngine(
            Config(
                model=str(models.DEMO), block_size=PAGE_TOKENS, max_num_seqs=ROWS,
                max_loras_per_batch=len(folders), max_loaded_loras=len(folders),
            ),
            lambda share: None,
        )  # fmt: skip
        ready = self._engine.ready()
        self._free = list(range(ready.pages))
        self._slots = {name: slot for slot, name in enumerate(folders)}
        self._steps = 0
        for name, slot in self._slots.items():
            found = acquired[digests[name]]
            pages = self._pages(-(-found.granules // ready.page_granules))
            self._step(loads=[AdapterLoad(slot, found.digest, found.path, pages)])
        self._row_pages = [self._pages(ROW_PAGES) for _ in range(ROWS)]

    def step_seconds(self, names):
        """Return the median of some decode steps whose last row has these adapters."""
        turns = [*([name] for name in DEMO_ADAPTERS), []]
        rows = [*(turns[row % len(turns)] for row in range(ROWS - 1)), names]
        for first in range(0, ROWS, JOIN_ROWS):
            some = range(first, first + JOIN_ROWS)
            self._step(
                joins=[self._join(row, rows[row]) for row in some],
                chunks=[Chunk(row, 0, _prompt(row), True) for row in some],
            )
        for _ in range(WARM_STEPS):
            self._step()
        taken = []
        for _ in range(STEPS):
            started = time.perf_counter()
            done = self._step()
            taken.append(time.perf_counter() - started)
            assert len(done.tokens) == ROWS
        self._step(leaves=list(range(ROWS)))
        return statistics.median(taken)

    def _join(self, row, names):
        adapters = [(self._slots[name], 1.0) for name in names]
        return Join(row, adapters, 0, self._row_pages[row], GREEDY, 0, PROMPT_TOKENS, None)

    def _pages(self, count):
        taken, self._free = self._free[:count], self._free[count:]
        assert len(taken) == count
        return taken

    def _step(self, **changes):
        self._steps += 1
        return self._engine.execute(Step(self._steps, **changes))


def _prompt(row):
    return [4 + (row + i) % 400 for i in range(PROMPT_TOKENS)]


def _own(folder, what):
    options = {"r": RANK, "target_modules": LINEAR} | OWN[what]
    added = options.pop("added", 0)
    model = AutoModelForCausalLM.from_pretrained(models.DEMO, dtype=torch.float32)
    if added:
        model.resize_token_embeddings(model.config.vocab_size + added)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says what it saves of a resized base
        save_adapter(folder, model, LoraConfig(task_type="CAUSAL_LM", **options), seed=0)
    return folder
