"""Output tokens a second with 0 to 16 adapters mixed, beside transformers with PEFT."""

import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.bench import models
from tests.bench.serving import generate, serve
from tests.bench.table import markdown

PROMPT_TOKENS = 64
OUTPUT_TOKENS = 64
ADAPTERS = (0, 1, 4, 16)
VOCABULARY = 400  # ids that every model here has


def run(shape, *, requests, rounds, threads):
    """Measure both, in turns, and return the table.

    PEFT gets all requests in one batch of equal lengths, which is its best case, in float32 and in
    bfloat16. weft computes in float32, from weights stored in either.
    """
    torch.set_num_threads(threads)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        folder = models.model_folder(shape, place, torch.float32)
        folders = models.adapter_folders(folder, place, max(ADAPTERS))
        first = None
        for count in ADAPTERS:
            used = dict(list(folders.items())[:count])
            prompts = _prompts(requests, list(used))
            peft = {dtype: _peft(folder, used, dtype) for dtype in ("float32", "bfloat16")}
            speeds = {"weft": [], "float32": [], "bfloat16": []}
            with serve(folder, used, threads=threads, kv_cache_memory_mib=1024) as server:
                generate(server, prompts, tokens=4)  # adapters are loaded then
                for _ in range(rounds):
                    speeds["weft"].append(_speed(_run_weft, server, prompts))
                    for dtype, model in peft.items():
                        speeds[dtype].append(_speed(_run_peft, model, prompts))
            del peft
            weft, full, half = (statistics.median(speeds[key]) for key in speeds)
            first = first or weft
            rows.append(
                (
                    count, f"{weft:.0f}", f"{full:.0f}", f"{half:.0f}", f"{weft / full:.1f}",
                    f"{weft / half:.1f}", f"{weft / first:.2f}",
                )
            )  # fmt: skip
    header = (
        "adapters", "weft", "PEFT float32", "PEFT bfloat16", "weft / PEFT float32",
        "weft / PEFT bfloat16", "weft / weft without",
    )  # fmt: skip
    return markdown(header, rows)


def _prompts(count, adapters):
    """(model, token ids) each; requests take turns with the adapters."""
    rng = random.Random(0)
    names = adapters or [None]
    return [
        (names[i % len(names)], [rng.randrange(4, VOCABULARY) for _ in range(PROMPT_TOKENS)])
        for i in range(count)
    ]


def _speed(work, engine, prompts):
    started = time.perf_counter()
    work(engine, prompts)
    return len(prompts) * OUTPUT_TOKENS / (time.perf_counter() - started)


def _run_weft(server, prompts):
    # Another first token, so that no prompt is found in the prefix cache.
    fresh = random.randrange(4, VOCABULARY)
    changed = [(model, [fresh, *prompt[1:]]) for model, prompt in prompts]
    generate(server, changed, tokens=OUTPUT_TOKENS)


def _peft(folder, adapters, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    for name, path in adapters.items():
        if isinstance(model, PeftModel):
            model.load_adapter(path, name)
        else:
            model = PeftModel.from_pretrained(model, path, name)
    return model.to(getattr(torch, dtype)).eval()


@torch.inference_mode()
def _run_peft(model, prompts):
    tokens = torch.tensor([prompt for _, prompt in prompts])
    options = {
        "attention_mask": torch.ones_like(tokens), "do_sample": False,
        "min_new_tokens": OUTPUT_TOKENS, "max_new_tokens": OUTPUT_TOKENS, "pad_token_id": 0,
    }  # fmt: skip
    if isinstance(model, PeftModel):
        options["adapter_names"] = [name for name, _ in prompts]
    out = model.generate(input_ids=tokens, **options)
    assert out.shape == (len(prompts), PROMPT_TOKENS + OUTPUT_TOKENS)
