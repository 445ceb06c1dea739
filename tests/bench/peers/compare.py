"""Output tokens a second of weft and of its peers, without adapters and with mixed ones."""

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

from tests.bench import models
from tests.bench.load import VOCABULARY, make_prompts
from tests.bench.peers import llama_cpp, tokenizer, transformers_peft, vllm, weft
from tests.bench.peers.engine import Setting
from tests.bench.peers.process import NotServing
from tests.bench.table import markdown

ENGINES = {
    "weft": weft,
    "vLLM": vllm,
    "llama.cpp": llama_cpp,
    "PEFT": transformers_peft,
}
ADAPTERS = 16
DTYPES = ("float32", "bfloat16", "float16")
RANKS = (8, 16, 32, 64)  # of adapters in turn
STD = 0.08  # of their weights: enough to change what a trained model says
PROBES = 8  # prompts whose tokens are compared with those of transformers
PROBE_TOKENS = 16
PATIENCE_S = 30  # a measurement that has taken so long is not repeated


class Measured(NamedTuple):
    """One engine's best rounds."""

    plain: float  # output tokens a second without adapters
    mixed: float  # with them
    agreement: float  # share of the probes' tokens that are transformers'


def run(shape, load, *, engines, dtype, rounds, threads, peers):
    """Measure engines one after another, and return the table and notes below it.

    Each engine serves twice: once without adapters, LoRA switched off, and once with all of them,
    every request with one. The best of ``rounds`` counts: other programs only ever slow one down.
    """
    measured, notes = {}, []
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        folder = _model(shape, place, dtype)
        folders = models.adapter_folders(folder, place, ADAPTERS, ranks=RANKS, std=STD)
        setting = Setting(folder, folders, max(RANKS), dtype, load, threads, peers, place)
        probes = _probes(load, list(folders))
        wanted = _reference(setting, probes)
        for name in engines:
            if lack := ENGINES[name].missing(peers):
                notes.append(f"{name} is skipped: {lack}. `make peers` installs the engines.")
                continue
            try:
                measured[name] = _measure(name, setting, probes, wanted, rounds)
            except (NotServing, Wrong) as error:
                notes.append(f"{name} failed: {error}")
    return "\n\n".join([_table(measured), *notes])


def _model(shape, place, dtype):
    """Save a model that never ends by itself, and whose text tells its tokens."""
    folder = models.model_folder(shape, place, getattr(torch, dtype))
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": None}))
    tokenizer.save(folder, json.loads((folder / "config.json").read_text())["vocab_size"])
    return folder


class Wrong(Exception):
    """An engine did not do what was measured."""


def _measure(name, setting, probes, wanted, rounds):
    plain_setting = setting._replace(adapters={})
    bare = [(None, prompt) for _, prompt in probes]
    with ENGINES[name].start(plain_setting) as ask:
        plain_tokens = _checked(ask, bare, PROBE_TOKENS)
        plain = _best(name, ask, setting.load, [], rounds)
    with ENGINES[name].start(setting) as ask:
        mixed_tokens = _checked(ask, probes, PROBE_TOKENS)
        if mixed_tokens == plain_tokens:
            raise Wrong("no adapter changes anything")
        mixed = _best(name, ask, setting.load, list(setting.adapters), rounds)
    return Measured(plain, mixed, _agreement(plain_tokens + mixed_tokens, wanted))


def _best(name, ask, load, adapters, rounds):
    """Return the most tokens a second of the rounds."""
    _checked(ask, make_prompts(load._replace(prompt_tokens=8), adapters), 2)
    best, spent_s = 0.0, 0.0
    while rounds and spent_s < PATIENCE_S:
        prompts = make_prompts(load, adapters)
        started = time.perf_counter()
        _checked(ask, prompts, load.output_tokens)
        seconds = time.perf_counter() - started
        speed = load.requests * load.output_tokens / seconds
        print(f"{name}, {len(adapters)} adapters: {speed:.0f}", file=sys.stderr, flush=True)
        best, spent_s, rounds = max(best, speed), spent_s + seconds, rounds - 1
    return best


def _checked(ask, prompts, tokens):
    """Ask, and return the tokens of each answer, having counted them."""
    answers = ask(prompts, tokens)
    for answer in answers:
        if not answer.count == len(answer.tokens) == tokens:
            counts = f"{answer.count} tokens, {len(answer.tokens)} of them shown"
            raise Wrong(f"{counts}, of {tokens} that were asked for")
    return [answer.tokens for answer in answers]


def _probes(load, names):
    rng = random.Random(0)
    prompts = [[rng.randrange(4, VOCABULARY) for _ in range(load.prompt_tokens)] for _ in names]
    return list(zip(names, prompts, strict=True))[:: len(names) // PROBES]


def _reference(setting, probes):
    """Return what transformers and PEFT answer in float32: without adapters, then with them."""
    exact = setting._replace(dtype="float32")
    with transformers_peft.start(exact) as ask:
        bare = [(None, prompt) for _, prompt in probes]
        return _checked(ask, bare, PROBE_TOKENS) + _checked(ask, probes, PROBE_TOKENS)


def _agreement(answers, wanted):
    """Return the share of tokens that come before an answer's first difference."""
    equal = 0
    for answer, right in zip(answers, wanted, strict=True):
        for token, right_token in zip(answer, right, strict=True):
            if token != right_token:
                break
            equal += 1
    return equal / sum(map(len, wanted))


def _table(measured):
    peers = [measured[name] for name in measured if name != "weft"]
    best_plain = max((peer.plain for peer in peers), default=0)
    best_mixed = max((peer.mixed for peer in peers), default=0)
    rows = [
        (
            name,
            f"{each.plain:.0f}",
            f"{each.mixed:.0f}",
            f"{each.mixed / each.plain:.2f}",
            f"{each.plain / best_plain:.2f}" if peers else "",
            f"{each.mixed / best_mixed:.2f}" if peers else "",
            f"{each.agreement:.0%}",
        )
        for name, each in measured.items()
    ]
    header = (
        "engine", "no adapters", f"{ADAPTERS} adapters", "with / without", "best peer's, none",
        f"best peer's, {ADAPTERS}", "tokens as transformers'",
    )  # fmt: skip
    return markdown(header, rows)
