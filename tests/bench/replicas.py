"""What each load_balance_method costs where there are many adapters: counts, no times.

The real router and schedulers; the model is the simulator's, which computes nothing. In a round
every replica executes one step, so that rounds stand for time on replicas that are alike.
"""

import random
from collections import deque

import numpy as np

from tests.actors.scheduler_harness import uses
from tests.bench.table import markdown
from tests.sim.fake_engine import FakeEngine
from weft.actors.router.actor import Router
from weft.actors.scheduler.actor import Scheduler
from weft.runtime.actor import Turn
from weft.runtime.config import Config
from weft.runtime.messages import (
    Acquire,
    Acquired,
    Away,
    Begin,
    CatalogSeen,
    DeviceRoom,
    Generate,
    Release,
    RowSampling,
    Sampled,
    Step,
)
from weft.runtime.replicas import Replica

METHODS = ("round_robin", "total_tokens", "adapter_aware")
COUNTS = (2, 4)
MIXES = {"Zipf": 1.0, "uniform": 0.0}  # how things are drawn: in proportion to 1 / n^alpha
CATALOGUE = 200
DEVICE_ADAPTERS = 32  # that a replica's device holds
REQUESTS = 1000
LIVE_EACH = 48  # requests at once, for each replica
PROMPT_TOKENS = (16, 256)
OUTPUT_TOKENS = (4, 64)
BEGINNINGS = 100  # of prompts, as many requests have in common: instructions, documents, chats
BEGINNING_TOKENS = 512

ANYTHING = RowSampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=0)


class Cluster:
    """Replicas behind a router, and clients that ask again as soon as they are answered."""

    def __init__(self, count, method):
        config = Config(
            model="-", data_parallel_size=count, load_balance_method=method,
            max_loaded_loras=DEVICE_ADAPTERS, max_loras_per_batch=8, max_num_seqs=64,
            max_num_batched_tokens=512,
        )  # fmt: skip
        self.router = Router(config)
        replicas = [Replica(index, count) for index in range(count)]
        self.schedulers = {
            replica.scheduler: Scheduler(config, runners=["runner"], replica=replica)
            for replica in replicas
        }
        self.engines = {
            scheduler: FakeEngine(
                pages=2048, page_tokens=config.block_size, slots=DEVICE_ADAPTERS,
                rows=config.max_num_seqs,
            )
            for scheduler in self.schedulers
        }  # fmt: skip
        self.steps = {scheduler: deque() for scheduler in self.schedulers}
        self.loads = dict.fromkeys(self.schedulers, 0)
        self.tokens = dict.fromkeys(self.schedulers, 0)  # computed, prompts among them
        self.ended = self.rounds = self.cached = 0
        for scheduler, engine in self.engines.items():
            self._say(scheduler, "runner", engine.ready())

    def ask(self, generate):
        """Take in one request."""
        self._say("router", "tokenizer", generate)

    def round(self):
        """Let every replica execute a step."""
        self.rounds += 1
        for scheduler in self.schedulers:
            self._advance(scheduler)
            if self.steps[scheduler]:
                step = self.steps[scheduler].popleft()
                self.loads[scheduler] += len(step.loads)
                done = self.engines[scheduler].execute(step)
                self.tokens[scheduler] += sum(len(chunk.tokens) for chunk in step.chunks)
                self.tokens[scheduler] += len(done.tokens)
                self._say(scheduler, "runner", done)
            self._advance(scheduler)

    def _advance(self, scheduler):
        turn = Turn(self.rounds, lambda peer: 1000)
        while sends := self.schedulers[scheduler].advance(turn):
            self._deliver(scheduler, sends)

    def _say(self, to, source, message):
        actor = self.router if to == "router" else self.schedulers[to]
        self._deliver(to, actor.receive(source, message, self.rounds))

    def _deliver(self, source, sends):
        for to, message in sends:
            match message:
                case Step():
                    self.steps[source].append(message)
                case Acquire(digest):
                    self._say(source, "adapters", Acquired(digest, f"/{digest}", 16, 1, 4))
                case Sampled(ends=ends):
                    self.ended += len(ends)
                    self.cached += sum(end.cached_tokens for end in ends)
                case Release() | Begin() | CatalogSeen() | DeviceRoom() | Away():
                    pass
                case _ if to not in ("tokenizer", "adapters"):
                    self._say(to, source, message)


def with_adapters(mix, seed):
    """Return requests for adapters, alike for every method."""
    rng = random.Random(seed)
    names = [f"a{number}" for number in _chosen(rng, CATALOGUE, mix)]
    return [_request(rng, number, [], name) for number, name in enumerate(names)]


def with_beginnings(mix, seed):
    """Return requests for the base, whose prompts begin alike; alike for every method."""
    rng = random.Random(seed)
    beginnings = [_tokens(rng, BEGINNING_TOKENS) for _ in range(BEGINNINGS)]
    chosen = _chosen(rng, BEGINNINGS, mix)
    return [_request(rng, number, beginnings[place], None) for number, place in enumerate(chosen)]


def _chosen(rng, count, mix):
    weights = 1 / np.arange(1, count + 1) ** MIXES[mix]
    return rng.choices(range(count), weights, k=REQUESTS)


def _request(rng, number, beginning, adapter):
    prompt = beginning + _tokens(rng, rng.randint(*PROMPT_TOKENS))
    return Generate(
        f"{number:032x}", "c", str(number), adapter or "base", prompt, uses(adapter), "",
        rng.randint(*OUTPUT_TOKENS), 1, [], ANYTHING, tenant="t",
    )  # fmt: skip


def _tokens(rng, count):
    return [rng.randrange(3, 999) for _ in range(count)]


def run(count, method, requests):
    """Return the cluster once it has answered all of them, so many at once."""
    cluster = Cluster(count, method)
    waiting = deque(requests)
    while cluster.ended < len(requests):
        while waiting and len(cluster.router._ledger) < LIVE_EACH * count:
            cluster.ask(waiting.popleft())
        cluster.round()
    return cluster


def adapters_table():
    """Return how often each method has the same requests' adapters loaded."""

    def found(requests, cluster):
        return f"{sum(cluster.loads.values()) / len(requests):.2f}"

    return _table(with_adapters, "adapter loads / request", found)


def beginnings_table():
    """Return how much of the same prompts each method has computed once only."""

    def found(requests, cluster):
        return f"{cluster.cached / sum(len(request.prompt) for request in requests):.2f}"

    return _table(with_beginnings, "share of prompts found", found)


def _table(draw, title, found):
    rows = []
    for mix in MIXES:
        for count in COUNTS:
            requests = draw(mix, count)
            output = sum(request.max_tokens for request in requests)
            for method in METHODS:
                cluster = run(count, method, requests)
                tokens = cluster.tokens.values()
                rows.append(
                    (
                        f"{count} replicas, {mix}, {method}",
                        found(requests, cluster),
                        f"{output / cluster.rounds:.1f}",
                        f"{max(tokens) * count / sum(tokens):.2f}",
                    )
                )
    return markdown(("", title, "output tokens / round", "busiest / mean"), rows)
