"""Configurations and requests of all kinds, drawn from a seed."""

import random
from dataclasses import dataclass, field

from tests.sim.client import Plan
from tests.sim.fake_engine import FAILING_SEED
from tests.sim.flow import ADAPTERS, Flow
from weft.runtime.messages import ChatMessage, Lora, Sampling, Submit

MODELS = (None, "base", *ADAPTERS, "alias", "gone", "broken", "unknown")
ACTIVATED = ("act0", "act0", "act1", "act0:0.5", "a1+act0")
SUMS = (
    "a0:0.5", "a0", "alias:2", "a0+a1", "a1+a0", "a2:0.5+a4", "a2+a4:0.5", "a1+a2:-1+a3",
    "a0+alias", "a1+gone",
)  # fmt: skip
PROMPTS = (
    "The quick brown fox jumps over the lazy dog.",
    "The quick brown fox jumps over the lazy cat.",
    "def weave(warp, weft):",
    "織物は縦糸と横糸でできている。",
    "x",
    "The quick brown fox jumps over a fox jumps over the lazy dog.",
    [7, 8, 9],
)
STOPS = ((), (), ("e",), (" t", "x"), ("th", "the"), ("never to be found", "a "))


@dataclass
class Setting:
    """One world."""

    options: dict  # of Flow
    plans: dict[str, list[Plan]] = field(default_factory=dict)  # by client
    turns_ns: dict[str, tuple[int, int]] = field(default_factory=dict)  # of slow clients
    inspections: dict[str, int] = field(default_factory=dict)  # by client
    # Client -> messages that it hears before it leaves, and how it does.
    leaving: dict[str, tuple[int, str]] = field(default_factory=dict)


def play(seed, model, folder):
    """Return the world of a seed, its clients in it."""
    return world(seed, setting(seed), model, folder)


def world(seed, drawn, model, folder, **options):
    """Return a world of a setting, its clients in it; options override the setting's."""
    flow = Flow(seed, model, folder, **(drawn.options | options))
    for name, made in drawn.plans.items():
        client = flow.join(
            name, made, turn_ns=drawn.turns_ns.get(name), leaving=drawn.leaving.get(name)
        )
        for _ in range(drawn.inspections.get(name, 0)):
            client.inspect()
    return flow


def setting(seed):
    """Sizes small enough for everything to run short now and then, and clients of all kinds."""
    rng = random.Random(f"setting {seed}")
    drawn = Setting(_options(rng) | {"ranks": 1 + seed % 3, "replicas": 1 + seed // 3 % 2})
    for index in range(rng.randint(2, 5)):
        name = f"client{index}"
        drawn.plans[name] = [plan(rng, f"r{number}") for number in range(rng.randint(1, 7))]
        if rng.random() < 0.2:
            drawn.leaving[name] = (rng.randint(0, 30), rng.choice(("kill", "retire")))
        if rng.random() < 0.3:
            drawn.inspections[name] = rng.randint(1, 3)
        if rng.random() < 0.2:
            drawn.turns_ns[name] = (10_000_000, 400_000_000)
    return drawn


def plan(rng, label):
    """A request, which may be wrong, cancelled, or too long."""
    sampling = Sampling(
        max_tokens=rng.choice((1, 2, 7, 20, 40, None)),
        seed=rng.choice((0, 1, 2, 3, FAILING_SEED)),
        n=rng.choice((1, 1, 1, 2, 3)),
        stop=list(rng.choice(STOPS)),
        stop_token_ids=rng.sample(range(480), rng.choice((0, 20))),
        include_stop=rng.random() < 0.3,
        skip_special_tokens=rng.random() < 0.7,
        repetition_penalty=rng.choice((None, None, 1.5)),
        logprobs=rng.choice((None, None, 0, 2)),
    )
    prompt, messages = rng.choice(PROMPTS), None
    if rng.random() < 0.1:
        prompt = [5] * rng.randint(1, 200)
    elif isinstance(prompt, str) and rng.random() < 0.2:
        prompt, messages = None, [ChatMessage(role="user", content=prompt)]
    model, lora = rng.choice((*MODELS, *SUMS, *ACTIVATED)), None
    if rng.random() < 0.2:
        names = rng.choices((*ADAPTERS, "alias", "unknown"), k=rng.randint(0, 4))
        lora = [Lora(name=name, scale=rng.choice((1.0, 1.0, 0.5, 0.0))) for name in names]
        model = rng.choice((None, "base", model))
    return Plan(
        Submit(label, model, messages, prompt, sampling, lora=lora),
        after_ns=rng.choice((0, 0, rng.randrange(300_000_000))),
        cancel_after_texts=rng.choice((None, None, None, 0, 1, 3)),
        cancels=rng.choice((1, 2)),
    )


def _options(rng):
    block_size = rng.choice((2, 4, 8))
    rows = rng.randint(1, 8)
    slots = rng.randint(1, 3)
    is_chunked = rng.random() < 0.8
    return {
        "pages": rng.choice((40, 80, 160, 640)) // block_size,
        "page_granules": rng.choice((1, 2, 8)),
        "window_max": rng.choice((None, None, 2, 8)),
        "block_size": block_size,
        "max_model_len": 128,
        "max_num_seqs": rows,
        "max_num_batched_tokens": rows + (rng.randint(0, 24) if is_chunked else 128),
        "enable_chunked_prefill": is_chunked,
        "enable_prefix_caching": rng.random() < 0.8,
        "max_loras_per_batch": slots,
        "max_loras_per_request": rng.randint(1, 4),
        "max_loaded_loras": slots + rng.randint(0, 4),
        "max_cpu_loras": rng.randint(1, 3),
        "lora_eviction_policy": rng.choice(("lru", "fifo")),
        "max_queued_requests": rng.choice((3, 1000)),
    }
