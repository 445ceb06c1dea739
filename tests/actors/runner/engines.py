"""Real engines on tiny models, driven by steps or by a scheduler; adapters made to measure."""

import json
import random
from collections import Counter

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.actors.runner.ranks import Ranks
from tests.actors.scheduler_harness import GREEDY, Harness, config
from tests.checkpoints import MODULES
from weft.actors.adapters.base import LinearShape
from weft.actors.adapters.granules import Size, of_matrix, of_module
from weft.actors.runner import architecture
from weft.actors.runner.torch_engine import TorchEngine
from weft.runtime.messages import Chunk, Join, Step

DEFAULTS = {"max_num_seqs": 40, "max_num_batched_tokens": 512, "block_size": 4}


def engine_of(model, *, backend=None, **options):
    """``backend``: makes what each rank computes with."""
    settings = config(model=str(model), **DEFAULTS | {"kv_cache_memory_mib": 16} | options)
    if settings.tensor_parallel_size > 1:
        return Ranks(settings, backend)
    return TorchEngine(settings, lambda share: None, backend=backend and backend())


def harness_of(model, paths, *, pages=None, backend=None, kind=Harness, **options):
    """A scheduler over a real engine of ``pages`` at most; ``paths`` maps digests to files."""
    options = DEFAULTS | {"max_loras_per_batch": 4, "max_loaded_loras": 13} | options
    engine = engine_of(model, backend=backend, **options)
    if pages is not None:
        engine._ready = msgspec.structs.replace(engine.ready(), pages=pages)
    shapes = architecture.read(model).part(0, options.get("tensor_parallel_size", 1))
    granules = {digest: _granules(path, shapes) for digest, path in paths.items()}
    return kind(engine=engine, paths=paths, granules=granules, **options)


def save_adapter(
    folder, model, digest, *, modules=MODULES, rank=8, size=0.4, vector=None, own_tokens=None
):
    """Write a file as the adapter store does, of random weights; returns its path.

    ``vector``: "bias" or "magnitude", which every module has then. ``own_tokens``: of which it has
    rows of the embedding and the head, both of which it updates, too, beside all norms.
    """
    shapes = architecture.read(model)
    generator = torch.Generator().manual_seed(sum(digest.encode()))
    tensors, scales = {}, {}
    for layer in range(shapes.layers):
        for module in modules:
            out, features = shapes.module_shape(module)
            name = f"layers.{layer}.{module}"
            a = torch.randn(rank, features, generator=generator)
            b = torch.randn(out, rank, generator=generator)
            tensors[f"{name}.A"] = a / features**0.5
            tensors[f"{name}.B"] = b * size / rank**0.5
            scales[name] = 1.5
            if vector is not None:
                tensors[f"{name}.{vector}"] = torch.rand(out, generator=generator) + 0.5
    if own_tokens is not None:
        tensors |= _own(shapes, rank, own_tokens, generator)
        scales |= {"embed_tokens": 0.5, "lm_head": 0.5}
    path = folder / f"{digest}.safetensors"
    save_file(tensors, path, metadata={"digest": digest, "scales": json.dumps(scales)})
    return str(path)


def _own(shapes, rank, tokens, generator):
    """Tensors of an adapter that changes all but linear layers."""

    def random(*shape):
        return torch.randn(shape, generator=generator) * 0.3

    found = {
        "embed_tokens.A": random(rank, shapes.vocabulary),
        "embed_tokens.B": random(shapes.hidden, rank),
        "lm_head.A": random(rank, shapes.hidden),
        "lm_head.B": random(shapes.vocabulary, rank),
        "norm": 1 + random(shapes.hidden),
    }
    for module in ("embed_tokens", "lm_head"):
        found[f"{module}.ids"] = torch.tensor(tokens, dtype=torch.int32)
        found[f"{module}.rows"] = random(len(tokens), shapes.hidden)
    for layer in range(shapes.layers):
        norms = {"input_layernorm": shapes.hidden, "post_attention_layernorm": shapes.hidden}
        if shapes.qk_norm:
            norms |= {"self_attn.q_norm": shapes.head_dim, "self_attn.k_norm": shapes.head_dim}
        found |= {f"layers.{layer}.{name}": 1 + random(size) for name, size in norms.items()}
    return found


def save_several(folder, model, kinds):
    """Write a file for each digest, made with its options; returns paths by digest."""
    return {digest: save_adapter(folder, model, digest, **kinds[digest]) for digest in kinds}


def _granules(path, shapes):
    """Of the layer that has most, as the adapter store would say; ``shapes`` are rank 0's."""
    layers, spread = Counter(), 0
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            if name.endswith("norm"):
                spread += of_matrix(1, *file.get_slice(name).get_shape())
            elif not name.startswith("layers.") and not name.endswith(".ids"):
                shape = file.get_slice(name).get_shape()
                spread += max(of_matrix(*shape), of_matrix(*reversed(shape)))
        for name in json.loads(file.metadata()["scales"]):
            if not name.startswith("layers."):
                continue
            rank, _ = file.get_slice(f"{name}.A").get_shape()
            _, layer, module = name.split(".")
            out, features = shapes.module_shape(module)
            size = Size(rank, not {f"{name}.bias", f"{name}.magnitude"}.isdisjoint(file.keys()))
            layers[layer] += of_module(size, LinearShape(features, out))
    return max(layers.values()) + -(-spread // shapes.layers)


def prompts_of(count, *, seed=0, longest=60):
    """Prompts of random lengths."""
    rng = random.Random(seed)
    return [[rng.randrange(160) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def prefill(engine, prompts, *, sampling=GREEDY, adapters=(), step=0):
    """Run whole prompts as one step, row i on slot ``adapters[i]``; return its StepDone."""
    page_tokens = engine.ready().page_tokens
    joins, chunks, first = [], [], 0
    for row, prompt in enumerate(prompts):
        count = -(-(len(prompt) + 1) // page_tokens)
        joins.append(
            Join(
                row,
                [] if not adapters or adapters[row] is None else [(adapters[row], 1.0)],
                0,
                list(range(first, first + count)),
                sampling,
                0,
                len(prompt),
                list(prompt) if sampling.needs_history else None,
            )
        )
        chunks.append(Chunk(row, 0, list(prompt), True))
        first += count
    return engine.execute(Step(step, joins=joins, chunks=chunks))
