"""A simulated weft whose adapters come and go, and a model of what each name may mean."""

import random
from collections import deque
from dataclasses import dataclass, field
from itertools import product

from tests.sim.client import Heard, Plan
from tests.sim.files import adapter_folder
from tests.sim.flow import Flow
from weft.runtime.actor import Send
from weft.runtime.messages import (
    Accepted,
    AdapterAnswer,
    Cancel,
    ListAdapters,
    LoadAdapter,
    PinAdapter,
    PrefetchAdapter,
    Refused,
    Sampling,
    Submit,
    Text,
    UnloadAdapter,
)

NAMES = tuple(f"n{number}" for number in range(5))
CONTENTS = tuple(f"/shelf/c{number}" for number in range(6))
BROKEN = "/shelf/broken"
RANK = 2

# What reading an adapter takes: most often little, and now and then longer than many requests.
READING_NS = (0, 0, 1_000_000, 30_000_000, 300_000_000)

# How often a runner dies, where they do.
DEATHS = 0.02


class Walker:
    """A client that sends what it is given, as far as its credit goes."""

    def __init__(self):
        self.outbox = deque()
        self.operations = {}  # label -> AdapterAnswer, Refused, or None: not answered yet
        self.requests = {}  # label -> Heard
        self._sequences = {}

    def say(self, message):
        if isinstance(message, Submit):
            self.requests[message.label] = Heard()
        elif not isinstance(message, Cancel):
            self.operations[message.label] = None
        self.outbox.append(message)

    def receive(self, source, message, now_ns):
        match message:
            case AdapterAnswer(label):
                assert self.operations[label] is None, f"{label} is answered twice"
                self.operations[label] = message
            case Refused(label):
                if label in self.operations:
                    assert self.operations[label] is None, f"{label} is answered twice"
                    self.operations[label] = message
                else:
                    self.requests[label].refused = message
            case Accepted(label, _, first, choices):
                heard = self.requests[label]
                heard.accepted = message
                for choice in range(choices):
                    self._sequences[first + choice] = heard, choice
                    heard.texts[choice], heard.logprobs[choice] = "", []
            case Text(sequences, texts, ends):
                for sequence, text in zip(sequences, texts, strict=True):
                    heard, choice = self._sequences[sequence]
                    heard.texts[choice] += text
                for end in ends:
                    heard, choice = self._sequences.pop(end.sequence)
                    heard.ends[choice] = end
        return []

    def advance(self, turn):
        room = turn.room("tokenizer") if turn.room("detokenizer") else 0
        count = min(room, len(self.outbox))
        return [Send("tokenizer", self.outbox.popleft()) for _ in range(count)]

    def lost(self, peer, now_ns):
        raise AssertionError(f"{peer} is lost")

    def check(self):
        pass


@dataclass
class Asked:
    """A request, and every content that each of its names may have meant until it was answered."""

    plan: Plan
    heard: Heard
    walker: Walker
    may_mean: dict = field(default_factory=dict)  # by name: digests; None: nothing
    is_open: bool = True


class Shelves:
    """Random operations by several clients, each name changed by one operation at a time.

    So what a name means is known, but for the time between an operation and its answer: then it may
    be what it was, or what it will be. Adapters take their time to be read, and runners may die.
    """

    def __init__(self, seed, model, folder, *, clients=2, is_deadly=False, **options):
        self.rng = random.Random(f"shelves {seed}")
        self._is_deadly = is_deadly
        self.flow = Flow(
            seed, model, folder, lora_ranks={"a0": RANK} | dict.fromkeys(NAMES, RANK),
            adapter_roots=["/shelf"], **options,
        )  # fmt: skip
        for number, source in enumerate(CONTENTS):
            self.flow.files.folders[source] = adapter_folder(100 + number, rank=RANK)
        self.flow.files.folders[BROKEN] = adapter_folder(99, use_dora=True)
        self.means = {name: self.flow.store._registry.find(name).digest for name in NAMES}
        self.digests = dict(zip(CONTENTS, map(self._digest_of, CONTENTS), strict=True))
        readings = random.Random(f"readings {seed}")
        self.flow.store._loader.delay(
            lambda: self.flow.world.now_ns, lambda: readings.choice(READING_NS)
        )
        self.walkers = [Walker() for _ in range(clients)]
        for number, walker in enumerate(self.walkers):
            self.flow.world.spawn("client", walker, name=f"walker{number}")
        self.pinned = set()
        self.on_device = set()  # of these
        self.changing = {}  # name -> (walker, operation)
        self.asked = []
        self.counts = {}
        self._label = 0

    def step(self):
        """Do one random thing, let some time pass, and hold everything against the model."""
        rng = self.rng
        walker = rng.choice(self.walkers)
        name = rng.choice(NAMES)
        self._label += 1
        label = f"l{self._label}"
        kind = rng.choices(
            ("request", "cancel", "load", "replace", "unload", "pin", "prefetch", "list", "wait"),
            (40, 5, 12, 12, 10, 6, 4, 3, 8),
        )[0]
        if kind == "request":
            self._request(walker, name, label)
        elif kind == "cancel":
            live = [asked for asked in self.asked if not asked.heard.is_over]
            if live:
                asked = rng.choice(live)
                asked.plan.is_cancelled = True
                asked.walker.say(Cancel(asked.plan.submit.label))
        elif kind == "list":
            walker.say(ListAdapters(label))
        elif kind != "wait" and name not in self.changing:
            self._change(walker, kind, name, label)
        if self._is_deadly and rng.random() < DEATHS:
            group = rng.choice(list(self.flow.groups.values()))
            group.kills.append((0, rng.randrange(len(group.roles))))
        until = self.flow.world.now_ns + rng.choice((0, 100_000, 3_000_000, 20_000_000))
        self.flow.wait(lambda: self.flow.world.now_ns >= until)
        self.flow.world.check()
        self._look()
        self._look_at_host_memory()

    def finish(self):
        """Let everything end, and hold the end against the model."""
        self.flow.wait(self._is_over)
        self._look()
        assert not self.asked
        for walker in self.walkers:
            assert None not in walker.operations.values()
        self.flow.run()
        self.flow.assert_all_is_back()
        wanted = {digest for digest in self.means.values() if digest}
        registry = self.flow.store._registry
        assert {e.name: e.digest for e in registry if e.name in NAMES} == {
            name: digest for name, digest in self.means.items() if digest
        }
        assert len(self.flow.store._naming.leaving) == 0
        ours = set(self.digests.values())
        composers = [scheduler._composer for scheduler in self.flow.schedulers.values()]
        on_device = {digest for composer in composers for digest in composer.slots.resident} & ours
        in_host = {path.split("/")[-1].split(".")[0] for path in self.flow.files.written} & ours
        cached = {each for composer in composers for each in composer.cache._branches} & ours
        assert on_device <= wanted
        assert in_host <= wanted
        assert cached <= wanted
        assert {name for name in NAMES if registry.is_pinned(name)} == self.pinned
        to_stay = {self.means[name] for name in self.on_device}
        for composer in composers:
            slots = composer.slots
            assert to_stay == {digest for digest in slots.resident if slots.is_held(digest)}

    # ---- what is done ---------------------------------------------------------------------------

    def _request(self, walker, name, label):
        sampling = Sampling(max_tokens=self.rng.choice((1, 4, 12)), seed=self.rng.randrange(3))
        names = [name]
        if self.rng.random() < 0.3:
            names.append(self.rng.choice([other for other in NAMES if other != name]))
        model = "+".join(names)
        submit = Submit(label, model, prompt=self.rng.choice(("x", "The quick")), sampling=sampling)
        walker.say(submit)
        asked = Asked(Plan(submit, 0), walker.requests[label], walker)
        for each in names:
            asked.may_mean[each] = {self.means[each]}
            if each in self.changing:
                asked.may_mean[each].add(self._target(each))
        self.asked.append(asked)

    def _change(self, walker, kind, name, label):
        source = self.rng.choice((*CONTENTS, BROKEN))
        match kind:
            case "load":
                operation = LoadAdapter(label, name, source)
            case "replace":
                pinned = self.rng.choice((None, None, True, False))
                operation = LoadAdapter(label, name, source, replace=True, pinned=pinned)
            case "unload":
                operation = UnloadAdapter(label, name)
            case "pin":
                pinned, on_device = self.rng.random() < 0.5, self.rng.random() < 0.5
                operation = PinAdapter(label, name, pinned=pinned, on_device=on_device)
            case "prefetch":
                operation = PrefetchAdapter(label, name)
        self.changing[name] = walker, operation
        walker.say(operation)
        for asked in self.asked:
            if asked.is_open and name in asked.may_mean:
                asked.may_mean[name].add(self._target(name))

    def _target(self, name):
        """What a name means once its operation has been done."""
        operation = self.changing[name][1]
        before = self.means[name]
        if isinstance(operation, UnloadAdapter):
            return None
        if isinstance(operation, LoadAdapter) and operation.source != BROKEN:
            return self.digests[operation.source] if operation.replace or not before else before
        return before

    # ---- what is heard --------------------------------------------------------------------------

    def _look_at_host_memory(self):
        """Its bytes are within the bound, and whoever was told of a pin finds the adapter there."""
        files = self.flow.files.written
        in_place = [path for path in files if path.endswith(".safetensors")]
        size_bytes = sum(len(files[path]) for path in in_place)
        assert size_bytes <= self.flow.config.host_memory_bytes, f"{size_bytes} bytes"
        there = {path.split("/")[-1].split(".")[0] for path in in_place}
        for name in self.pinned - self.changing.keys():
            assert self.means[name] in there, f"{name} is pinned and not in host memory"

    def _look(self):
        for name, (walker, operation) in list(self.changing.items()):
            answer = walker.operations[operation.label]
            if answer is not None:
                self._judge(name, operation, answer)
                del self.changing[name]
        for asked in list(self.asked):
            heard = asked.heard
            if heard.accepted or heard.refused:
                asked.is_open = False
            if heard.is_over:
                self.asked.remove(asked)
                self._judge_request(asked)

    def _judge(self, name, operation, answer):
        before, after = self.means[name], self._target(name)
        expected = self._outcomes(name, operation, before, after)
        outcome = answer.code if isinstance(answer, Refused) else answer.outcome
        assert outcome in expected, (operation, answer, expected)
        self.counts[outcome] = self.counts.get(outcome, 0) + 1
        if isinstance(answer, Refused):
            return
        self.means[name] = after
        if isinstance(operation, PinAdapter):
            (self.pinned.add if operation.pinned else self.pinned.discard)(name)
            is_there = operation.pinned and operation.on_device
            (self.on_device.add if is_there else self.on_device.discard)(name)
        if isinstance(operation, LoadAdapter) and operation.pinned is not None:
            (self.pinned.add if operation.pinned else self.pinned.discard)(name)
            self.on_device &= self.pinned
        if isinstance(operation, UnloadAdapter):
            self.pinned.discard(name)
            self.on_device.discard(name)
            assert answer.adapters == []
        else:
            [state] = answer.adapters
            assert (state.name, state.digest) == (name, after)
            assert state.pinned == (name in self.pinned)
            assert state.pinned_on_device == (name in self.on_device)
        # What a client hears is true already: whoever asks from now on gets the new meaning.

    def _outcomes(self, name, operation, before, after):
        if isinstance(operation, LoadAdapter):
            if operation.source == BROKEN:
                return {"bad_adapter"}
            wanted = self.digests[operation.source]
            is_pin = operation.pinned or (operation.pinned is None and name in self.pinned)
            # Too many are pinned, or all places are taken by what runs.
            too_many = {"invalid_value", "queue_full"} if is_pin else set()
            if before == wanted:
                return {"already_loaded"} | too_many
            if before is None:
                return {"loaded"} | too_many
            return {"replaced"} | too_many if operation.replace else {"name_taken"}
        if before is None:
            return {"model_not_found"}
        if isinstance(operation, UnloadAdapter):
            return {"unloaded"}
        if isinstance(operation, PrefetchAdapter):
            return {"prefetched", "queue_full"}
        return {"pinned", "invalid_value", "queue_full"} if operation.pinned else {"unpinned"}

    def _judge_request(self, asked):
        """Hold an answer against each content that its names may have meant."""
        meanings = [
            dict(zip(asked.may_mean, digests, strict=True))
            for digests in product(*asked.may_mean.values())
        ]
        if asked.heard.refused is not None:
            code = asked.heard.refused.code
            allowed = {"cancelled"} if asked.plan.is_cancelled else set()
            for meaning in meanings:
                if None in meaning.values():
                    allowed.add("model_not_found")
                elif len(set(meaning.values())) < len(meaning):
                    allowed.add("invalid_value")  # both names mean one content
            assert code in allowed, asked
            return
        found = []
        for meaning in meanings:
            if None in meaning.values():
                continue
            self.flow.oracle._digest = meaning.__getitem__
            try:
                self.flow.oracle.check(asked.plan, asked.heard)
            except AssertionError as error:
                found.append(error)
            else:
                return
        raise AssertionError(f"no meaning of {asked} explains the answer: {found}")

    def _is_over(self):
        self._look()
        is_told = all(None not in walker.operations.values() for walker in self.walkers)
        return not (self.asked or self.changing) and is_told

    def _digest_of(self, source):
        loader = self.flow.store._loader
        loader.start(source, with_file=False)
        [loaded] = loader.finished()
        return loaded.result.digest
