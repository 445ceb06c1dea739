"""Drives a Scheduler against the deterministic model, with everything else scripted."""

from collections import deque

import msgspec

from tests.sim.fake_engine import EOS, FakeEngine
from weft.actors.scheduler.actor import Scheduler
from weft.actors.scheduler.flight import STEPS_IN_FLIGHT
from weft.runtime.actor import Turn
from weft.runtime.config import Config
from weft.runtime.messages import (
    Acquire,
    Acquired,
    AdapterUse,
    Away,
    Begin,
    DeviceRoom,
    End,
    Generate,
    Inspection,
    Reject,
    Release,
    RowSampling,
    Sampled,
    Step,
)

GREEDY = RowSampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0)


def uses(adapter, name=None):
    """What a request says of one adapter, of several (digest -> scale), or of none."""
    scales = adapter if isinstance(adapter, dict) else {adapter: 1.0} if adapter else {}
    return [AdapterUse(digest, scale, name or digest) for digest, scale in sorted(scales.items())]


def config(**options) -> Config:
    values = {"model": "-", "block_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": 32}
    return Config(**(values | options))


class Harness:
    """One scheduler, one fake runner that answers when told to, a store that answers at once."""

    def __init__(
        self, *, pages=64, engine=None, paths=None, granules=None, copy_steps=0, **options
    ) -> None:
        """``paths`` and ``granules`` are of adapters, by digest; ``copy_steps`` of the engine."""
        self.config = config(**({"max_loras_per_batch": 2, "max_loaded_loras": 8} | options))
        self.paths = paths or {}
        self.granules = granules or {}
        self.engine = engine or FakeEngine(
            pages=pages,
            page_tokens=self.config.block_size,
            slots=self.config.max_loaded_loras,
            rows=self.config.max_num_seqs,
            copy_steps=copy_steps,
        )
        self.scheduler = Scheduler(self.config, runners=["runner0"])
        self.now_ns = 0
        self.room = 100
        self.steps: deque[Step] = deque()
        self.sent_steps: list[Step] = []
        self.begun: dict[str, Begin] = {}
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[tuple]] = {}
        self.ends: dict[int, End] = {}
        self.rejected: list[Reject] = []
        self.away: str | None = None
        self.inspections: list[Inspection] = []
        self.pinned_in_host: dict[str, int] = {}
        self.withheld: list[Acquire] = []
        self.holds_acquires = False
        self.in_host: set[str] = set()  # adapters that the store need not read
        self.receive("runner0", self.engine.ready())

    def receive(self, source, message) -> None:
        self.now_ns += 1000
        self._deliver(self.scheduler.receive(source, message, self.now_ns))
        self.scheduler.check()

    def advance(self) -> bool:
        sends = self.scheduler.advance(Turn(self.now_ns, lambda peer: self.room))
        self._deliver(sends)
        self.scheduler.check()
        return bool(sends)

    def run_step(self) -> bool:
        """Let the runner answer the oldest step. False if it has none."""
        while self.advance():
            pass
        if not self.steps:
            return False
        self.receive("runner0", self.engine.execute(self.steps.popleft()))
        return True

    def run(self, steps_max=5000) -> None:
        for _ in range(steps_max):
            if not self.run_step():
                return
        raise AssertionError(f"not done after {steps_max} steps")

    def generate(self, label, prompt, *, adapter=None, max_tokens=8, client="c", **options):
        fields = {
            "request_id": f"{label:>032}",
            "client": client,
            "label": label,
            "model": "base" if adapter is None else str(adapter),
            "prompt": prompt,
            "adapters": uses(adapter, options.get("model")),
            "salt": "",
            "max_tokens": max_tokens,
            "choices": 1,
            "stop_token_ids": [EOS],
            "sampling": GREEDY,
        }
        self.receive("tokenizer", Generate(**(fields | options)))

    def output(self, label, choice=0) -> list[int]:
        return self.tokens.get(self.begun[label].first_sequence + choice, [])

    def end(self, label, choice=0) -> End:
        return self.ends[self.begun[label].first_sequence + choice]

    def end_of(self, label) -> End | None:
        """The end of a request with one choice, if it has come."""
        return self.ends.get(self.begun[label].first_sequence)

    def assert_all_is_back(self) -> None:
        counters = self.scheduler._counters()
        for name in ("requests", "sequences", "waiting", "rows_running", "pages_sequences"):
            assert counters[name] == 0, (name, counters)
        assert counters["adapter_pins"] == counters["adapters_held"] == 0
        assert counters["pages_adapters"] == counters["pages_adapters_idle"]
        assert self.engine.counters()["rows"] == 0
        assert sum(self.pinned_in_host.values()) == 0
        assert self.scheduler.is_idle

    def _deliver(self, sends) -> None:
        for to, message in sends:
            msgspec.msgpack.encode(message)
            match message:
                case Step():
                    assert to == "runner0"
                    self.steps.append(message)
                    self.sent_steps.append(message)
                    assert len(self.steps) <= STEPS_IN_FLIGHT
                case Begin():
                    self.begun[message.label] = message
                case Sampled():
                    for number, token in zip(message.sequences, message.tokens, strict=True):
                        assert number not in self.ends
                        self.tokens.setdefault(number, []).append(token)
                    for entry in message.logprobs:
                        number = message.sequences[entry.index]
                        told = (entry.chosen, entry.top_tokens, entry.top)
                        self.logprobs.setdefault(number, []).append(told)
                    for end in message.ends:
                        assert end.sequence not in self.ends
                        self.ends[end.sequence] = end
                case Reject():
                    self.rejected.append(message)
                case DeviceRoom():
                    self.device_room = message
                case Away(reason):
                    self.away = reason
                case Acquire(digest) if self.holds_acquires:
                    self.withheld.append(message)
                case Acquire(digest):
                    self.acquired(digest)
                case Inspection() if to == "runner0":
                    self.receive("runner0", message)
                case Inspection():
                    self.inspections.append(message)
                case Release(digest):
                    self.pinned_in_host[digest] -= 1
                    assert self.pinned_in_host[digest] == 0
                case _:
                    raise AssertionError(message)

    def acquired(self, digest) -> None:
        self.pinned_in_host[digest] = self.pinned_in_host.get(digest, 0) + 1
        assert self.pinned_in_host[digest] == 1
        path, granules = self.paths.get(digest, f"/{digest}"), self.granules.get(digest, 1)
        was_read = digest not in self.in_host
        self.in_host.add(digest)
        self.receive("adapters", Acquired(digest, path, 8, 1, granules, was_read))


def prompt(length, salt=0):
    return [3 + (salt * 7919 + i * 31) % 900 for i in range(length)]


def ask(harness, label, adapter, *, length=5, max_tokens=4, **options):
    """Have one request answered, with nothing else running."""
    harness.generate(label, prompt(length), adapter=adapter, max_tokens=max_tokens, **options)
    harness.run()
    assert harness.end(label).error is None


def loads(harness):
    return [load.digest for step in harness.sent_steps for load in step.loads]


def counters(harness):
    return harness.scheduler._counters()
