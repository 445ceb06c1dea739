"""Output tokens a second with 0 to 16 adapters mixed, beside transformers with PEFT."""

import random
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.bench import models
from tests.bench.serving import generate, serve
from tests.bench.table import markdown

ADAPTERS = (0, 1, 4, 16)
VOCABULARY = 400  # ids that every model here has
PEFT_DTYPES = ("float32", "bfloat16")


class Load(NamedTuple):
    """What is asked, all at once."""

    requests: int
    prompt_tokens: int
    output_tokens: int


class Peft(NamedTuple):
    """transformers, without PEFT's layers and with them; every adapter is loaded."""

    plain: torch.nn.Module
    adapted: PeftModel


def run(shape, load, *, rounds, threads):
    """Measure everything in turns, ``rounds`` times, and return the table.

    PEFT gets all requests in one batch of equal lengths, which is its best case, in float32 and in
    bfloat16. weft computes in float32. A column is the median of the rounds; a ratio is the median
    of each round's own ratios, so that a machine that is busier in some rounds changes little; but
    for one, of each engine's best round, since a busy machine costs who waits more than who works.
    """
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        folder = models.model_folder(shape, place, torch.float32)
        folders = models.adapter_folders(folder, place, max(ADAPTERS))
        peft = {dtype: _load_peft(folder, folders, dtype) for dtype in PEFT_DTYPES}
        with ExitStack() as stack:
            options = {"threads": threads, "kv_cache_memory_mib": 1024}
            server = stack.enter_context(serve(folder, folders, **options))
            # Adapters are loaded, and memory is touched, before anything is timed.
            generate(server, make_prompts(load, list(folders)), tokens=4)
            speeds = [_round(server, peft, list(folders), load) for _ in range(rounds)]
    return _table(speeds)


def make_prompts(load, names):
    """(model, token ids) each; requests take turns with the adapters.

    Every call makes others, so that nothing is found in the prefix cache.
    """
    names = names or [None]
    return [
        (
            names[i % len(names)],
            [random.randrange(4, VOCABULARY) for _ in range(load.prompt_tokens)],
        )
        for i in range(load.requests)
    ]


def _round(server, peft, names, load):
    """Return tokens a second by number of adapters and engine."""
    speeds = {}
    for count in ADAPTERS:
        prompts = make_prompts(load, names[:count])
        started = time.perf_counter()
        generate(server, prompts, tokens=load.output_tokens)
        seconds = {"weft": time.perf_counter() - started}
        for dtype, engines in peft.items():
            started = time.perf_counter()
            _run_peft(engines, prompts, load)
            seconds[dtype] = time.perf_counter() - started
        tokens = load.requests * load.output_tokens
        speeds[count] = {engine: tokens / seconds[engine] for engine in seconds}
        told = ", ".join(f"{engine} {speed:.0f}" for engine, speed in speeds[count].items())
        print(f"{count} adapters: {told}", file=sys.stderr, flush=True)
    return speeds


def _table(speeds):
    def middle(value):
        return statistics.median(map(value, speeds))

    def best(count, *engines):
        return max(speed[count][engine] for speed in speeds for engine in engines)

    rows = [
        (
            count,
            *(f"{middle(lambda r: r[count][e]):.0f}" for e in ("weft", *PEFT_DTYPES)),  # noqa: B023
            *(
                f"{middle(lambda r: r[count]['weft'] / r[count][dtype]):.2f}"  # noqa: B023
                for dtype in PEFT_DTYPES
            ),
            f"{best(count, 'weft') / best(count, *PEFT_DTYPES):.2f}",
            f"{middle(lambda r: r[count]['weft'] / r[0]['weft']):.2f}",  # noqa: B023
        )
        for count in ADAPTERS
    ]
    header = (
        "adapters", "weft", "PEFT float32", "PEFT bfloat16", "weft / PEFT float32",
        "weft / PEFT bfloat16", "best weft / best PEFT", "weft / weft without",
    )  # fmt: skip
    return markdown(header, rows)


def _load_peft(folder, adapters, dtype):
    def base():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    adapted = None
    for name, path in adapters.items():
        if adapted is None:
            adapted = PeftModel.from_pretrained(base(), path, name)
        else:
            adapted.load_adapter(path, name)
    return Peft(base(), adapted.to(getattr(torch, dtype)).eval())


@torch.inference_mode()
def _run_peft(peft, prompts, load):
    tokens = torch.tensor([prompt for _, prompt in prompts])
    options = {
        "attention_mask": torch.ones_like(tokens), "do_sample": False,
        "min_new_tokens": load.output_tokens, "max_new_tokens": load.output_tokens,
        "pad_token_id": 0,
    }  # fmt: skip
    if prompts[0][0] is None:
        out = peft.plain.generate(input_ids=tokens, **options)
    else:
        options["adapter_names"] = [name for name, _ in prompts]
        out = peft.adapted.generate(input_ids=tokens, **options)
    assert out.shape == (load.requests, load.prompt_tokens + load.output_tokens)
