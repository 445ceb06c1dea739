"""All of weft in one thread: the real actors but for the model, with clients that follow a script.

What a request must be answered is computed beside it, from the model's definition alone.
"""

import json
from dataclasses import dataclass, field

import numpy as np
import safetensors.numpy

from tests.sim.fake_engine import FakeEngine, generate
from weft.actors.adapters.actor import AdapterStore
from weft.actors.adapters.base import BaseShapes
from weft.actors.adapters.files import FileError
from weft.actors.detokenizer.actor import Detokenizer
from weft.actors.detokenizer.vocabulary import Vocabulary
from weft.actors.runner.actor import Runner
from weft.actors.scheduler.actor import Scheduler
from weft.actors.tokenizer.actor import TokenizerManager
from weft.runtime.actor import Send
from weft.runtime.config import Config
from weft.runtime.messages import (
    Accepted,
    Cancel,
    End,
    Inspect,
    Models,
    Refused,
    Report,
    Submit,
    Text,
)
from weft.runtime.simulate import World
from weft.runtime.topology import CLIENT

BASE = BaseShapes(num_hidden_layers=1, hidden_size=4, intermediate_size=4, num_attention_heads=1)
ADAPTERS = tuple(f"a{number}" for number in range(5))


class MemoryFiles:
    """Adapter folders that need no disk, and what the store writes."""

    def __init__(self, folders):
        self.folders = folders  # folder -> name -> content
        self.written = {}

    def names(self, folder):
        return sorted(self.folders[folder])

    def read(self, folder, name, *, bytes_max):
        try:
            return self.folders[folder][name]
        except KeyError:
            raise FileError(f"{name} is gone; put it back") from None

    def write(self, path, parts):
        self.written[path] = b"".join(parts)

    def remove(self, path):
        del self.written[path]


def adapter_folder(number):
    """A PEFT folder whose weights are unlike any other number's."""
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }  # fmt: skip
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    weights = {
        name.format("A"): np.full((2, 4), number, np.float32),
        name.format("B"): np.full((4, 2), 1, np.float32),
    }
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": safetensors.numpy.save(weights),
    }


@dataclass
class Plan:
    """A request that a client will make."""

    submit: Submit
    after_ns: int
    cancel_after_texts: int | None = None


@dataclass
class Heard:
    """What a client was told of one request."""

    refused: Refused | None = None
    accepted: Accepted | None = None
    texts: dict[int, str] = field(default_factory=dict)  # by choice
    ends: dict[int, End] = field(default_factory=dict)
    messages: int = 0

    @property
    def is_over(self):
        if self.refused is not None:
            return True
        return self.accepted is not None and len(self.ends) == self.accepted.choices


class ScriptedClient:
    """Sends what is planned as far as its credit goes, and notes every answer."""

    def __init__(self, plans):
        self._plans = sorted(plans, key=lambda plan: plan.after_ns)
        self._cancels = {
            plan.submit.label: plan.cancel_after_texts
            for plan in plans
            if plan.cancel_after_texts is not None
        }
        self._questions = []
        self._sequences = {}  # number -> (Heard, choice)
        self.heard = {plan.submit.label: Heard() for plan in plans}
        self.reports = []

    @property
    def is_over(self):
        return all(heard.is_over for heard in self.heard.values())

    def inspect(self):
        self._questions.append(Inspect("inspect"))

    def receive(self, source, message, now_ns):
        match message:
            case Refused(label):
                assert not self.heard[label].accepted
                self.heard[label].refused = message
            case Accepted(label, _, first_sequence, choices):
                heard = self.heard[label]
                assert not heard.is_over
                assert heard.accepted is None
                heard.accepted = message
                for choice in range(choices):
                    self._sequences[first_sequence + choice] = heard, choice
                    heard.texts[choice] = ""
            case Text(sequences, texts, ends):
                for sequence, text in zip(sequences, texts, strict=True):
                    heard, choice = self._sequences[sequence]
                    assert choice not in heard.ends
                    heard.texts[choice] += text
                    heard.messages += 1
                for end in ends:
                    heard, choice = self._sequences.pop(end.sequence)
                    heard.ends[choice] = end
            case Report():
                self.reports.append(message)
            case Models():
                raise AssertionError("nobody asked")
        return []

    def advance(self, turn):
        if not turn.room("detokenizer"):
            return []  # an answer would have no way back
        sends = []
        room = turn.room("tokenizer")
        for label, texts in list(self._cancels.items()):
            if len(sends) < room and self.heard[label].messages >= texts:
                sends.append(Send("tokenizer", Cancel(label)))
                del self._cancels[label]
        while len(sends) < room and self._plans and self._plans[0].after_ns <= turn.now_ns:
            sends.append(Send("tokenizer", self._plans.pop(0).submit))
        while len(sends) < room and self._questions:
            sends.append(Send("tokenizer", self._questions.pop()))
        return sends

    def lost(self, peer, now_ns):
        raise AssertionError(f"{peer} is lost")

    def check(self):
        pass


class Flow:
    """One simulated weft, and the clients of one test."""

    def __init__(self, seed, model, folder, *, pages=96, **options):
        """``model`` is the TextModel of ``folder``."""
        values = {
            "block_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": 24,
            "max_loras_per_batch": 2, "max_loaded_loras": 3, "max_queued_requests": 64,
        }  # fmt: skip
        self.config = Config(
            model=str(folder),
            served_model_name="base",
            adapters={name: f"/{name}" for name in (*ADAPTERS, "alias")},
            **(values | options),
        )
        self.model = model
        folders = {f"/{name}": adapter_folder(number) for number, name in enumerate(ADAPTERS)}
        self.files = MemoryFiles(folders | {"/alias": adapter_folder(0)})
        self.world = World(seed)
        self.clients = {}
        self.tokenizer = TokenizerManager(self.config, model, nonce=seed, started_s=0)
        self.scheduler = Scheduler(self.config, runners=["runner0"])
        self.detokenizer = Detokenizer(Vocabulary(model.backend))
        self.store = AdapterStore(self.config, BASE, self.files, "/run", started_s=0)
        self.engine = FakeEngine(
            pages=pages,
            page_tokens=self.config.block_size,
            slots=self.config.max_loras_per_batch,
            rows=self.config.max_num_seqs,
            vocabulary=model.vocab_size,
        )
        self.actors = {
            "tokenizer": self.tokenizer,
            "scheduler": self.scheduler,
            "detokenizer": self.detokenizer,
            "adapters": self.store,
            "runner0": Runner(self.engine, role="runner0"),
        }
        for role, actor in self.actors.items():
            self.world.spawn(role, actor)

    def join(self, name, plans):
        client = ScriptedClient(plans)
        self.clients[name] = client
        self.world.spawn(CLIENT, client, name=name)
        return client

    def run(self, *, limit_s=600.0):
        """Until every client that lives has all its answers and nobody has anything to do."""
        self.world.run_until(
            lambda: all(client.is_over for client in self.clients.values()), limit_s=limit_s
        )
        self.world.run_until(
            lambda: all(actor.is_idle for actor in self.actors.values()), limit_s=limit_s
        )
        self.world.check()

    def leave(self, name):
        """A client vanishes."""
        self.world.kill(name)
        del self.clients[name]

    def sections(self):
        """What every actor says that it holds, asked over the wire."""
        client = self.join("inspector", [])
        client.inspect()
        self.world.run_until(lambda: client.reports)
        return client.reports[0].sections

    def assert_all_is_back(self):
        sections = self.sections()
        scheduler = sections["scheduler"]
        for name in ("requests", "sequences", "waiting", "rows_running", "pages_held"):
            assert scheduler[name] == 0, name
        assert scheduler["adapter_pins"] == 0
        assert scheduler["pages_free"] + scheduler["pages_cached"] == scheduler["pages"]
        assert sections["tokenizer"]["waiting"] == 0
        assert sections["adapters"]["waiting"] == 0
        assert len(self.files.written) == sections["adapters"]["loaded"]

    def tokens(self, submit, choice):
        """What the model draws for one choice, by its definition."""
        sampling = submit.sampling
        prompt = submit.prompt
        if isinstance(prompt, str):
            prompt = self.model.backend.encode(prompt).ids
        return generate(
            self._digest(submit.model),
            prompt,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            choice=choice,
            stop=self.model.eos_token_ids,
            vocabulary=self.model.vocab_size,
        )

    def expected(self, submit, choice):
        """Text, reason and number of tokens of one choice."""
        tokens = self.tokens(submit, choice)
        is_ended = tokens[-1] in self.model.eos_token_ids
        shown = tokens[:-1] if is_ended else tokens
        for count in range(1, len(shown) + 1):
            text = self.model.backend.decode(shown[:count])
            ends = [(text.find(stop), stop) for stop in submit.sampling.stop if stop in text]
            if ends:
                return text[: min(ends)[0]], "stop", count
        reason = "stop" if is_ended else "length"
        return self.model.backend.decode(shown), reason, len(tokens)

    def _digest(self, name):
        return self.tokenizer._names.digest(name)

    def assert_answered(self, plan, heard):
        """Assert that an answer is what it must be, or a cut of it that was asked for."""
        assert heard.accepted is not None, heard.refused
        for choice in range(plan.submit.sampling.n):
            text, reason, count = self.expected(plan.submit, choice)
            end = heard.ends[choice]
            if end.reason == "cancelled":
                assert plan.cancel_after_texts is not None
                tokens = self.tokens(plan.submit, choice)[: end.output_tokens]
                assert heard.texts[choice] == self.model.backend.decode(tokens)
            else:
                assert (heard.texts[choice], end.reason) == (text, reason), plan
                assert end.output_tokens == count
