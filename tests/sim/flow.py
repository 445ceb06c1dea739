"""All of weft in one thread: the real actors but for the model, with clients that follow a script.

What a request must be answered is computed beside it, from the model's definition alone.
"""

from tests.sim.client import ScriptedClient
from tests.sim.files import BASE, DirectLoader, MemoryFiles, adapter_folder
from tests.sim.oracle import Oracle
from tests.sim.renderer import DirectRenderer
from tests.sim.runner_group import RunnerGroup
from weft.actors.adapters.actor import AdapterStore
from weft.actors.detokenizer.actor import Detokenizer
from weft.actors.detokenizer.vocabulary import Vocabulary
from weft.actors.router.actor import Router
from weft.actors.scheduler.actor import Scheduler
from weft.actors.tokenizer.actor import TokenizerManager
from weft.runtime.config import Config
from weft.runtime.replicas import replica_of
from weft.runtime.simulate import FAIR, World
from weft.runtime.topology import CLIENT, with_runners

# Their ranks, and so how many granules they take: from 2 to 16.
RANKS = {"a0": 1, "a1": 8, "a2": 9, "a3": 30, "a4": 64}
ADAPTERS = tuple(RANKS)

# Adapters that act from the last of these words on, as far as a prompt has them.
INVOKED_BY = {"act0": " fox jumps", "act1": "x"}

# What is on its way when nobody has anything left to do has arrived by then.
SETTLE_NS = 100_000_000
SETTLE_FRAMES = 10  # one behind the other

# The slowest client has read by then what has arrived.
SLOW_TURN_NS = 1_000_000_000

# Events between two looks at every invariant of every actor.
CHECK_EVENTS = 200

# What frames may be dropped for: they came from, or were for, a client that has left, or a life
# that is over.
HARMLESS_FAULTS = {"unreachable", "unopened"}
OF_FORMER_LIVES = {"fenced"}


class Flow:
    """One simulated weft, and the clients of one test."""

    def __init__(
        self, seed, model, folder, *, pages=96, page_granules=2, window_max=None, ranks=1,
        replicas=1, lora_ranks=RANKS, conditions=FAIR, **options,
    ):  # fmt: skip
        """``model`` is the TextModel of ``folder``; ``window_max`` narrows every link.

        Each of the ``replicas`` has ``pages`` pages.
        ``lora_ranks`` are those of the adapters that can be used, by name.
        Ranks beyond the first compute the same tokens, and nobody waits for them.
        """
        values = {
            "block_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": 24,
            "max_loras_per_batch": 2, "max_loaded_loras": 3, "max_cpu_loras": 3,
            "max_queued_requests": 1000, "max_model_len": model.max_model_len,
        }  # fmt: skip
        lora_ranks = lora_ranks | {"alias": lora_ranks["a0"]}
        invocations = {
            name: model.backend.encode(text, add_special_tokens=False).ids
            for name, text in INVOKED_BY.items()
        }
        names = (*lora_ranks, "gone", "broken", *invocations)
        self.config = Config(
            model=str(folder),
            served_model_name="base",
            data_parallel_size=replicas,
            adapters={name: f"/{name}" for name in names},
            **(values | options),
        )
        folders = {
            f"/{name}": adapter_folder(number, rank=lora_ranks.get(name, 2))
            for number, name in enumerate(names)
        }
        folders["/alias"] = folders["/a0"]
        for number, (name, tokens) in enumerate(invocations.items(), len(names)):
            folders[f"/{name}"] = adapter_folder(number, alora_invocation_tokens=tokens)
        folders["/broken"] = adapter_folder(8, use_qalora=True)
        self.files = MemoryFiles(folders)
        self._topology = _narrowed(with_runners(ranks, replicas=replicas), window_max)
        self.world = World(seed, topology=self._topology, conditions=conditions)
        self._settle_ns = max(SETTLE_NS, SETTLE_FRAMES * conditions.latency_ns[1])
        self.clients = {}  # that are there
        self.left = {}  # that have left
        self.renderer = DirectRenderer()
        self.tokenizer = TokenizerManager(
            self.config, model, self.renderer, nonce=seed, started_s=0
        )
        self.schedulers = {
            role: Scheduler(self.config, runners=group, replica=replica_of(role, replicas))
            for role, group in self._topology.groups.items()
        }
        roles = list(self.schedulers)
        self.scheduler = self.schedulers[roles[0]]
        self.detokenizer = Detokenizer(Vocabulary(model.backend), schedulers=roles)
        loader = DirectLoader(self.config, BASE, self.files)
        self.store = AdapterStore(
            self.config, self.files, loader, "/run", started_s=0, schedulers=roles
        )
        self.files.folders["/gone"] = {}
        sizes = {
            "page_tokens": self.config.block_size,
            "slots": self.config.max_loaded_loras,
            "rows": self.config.max_num_seqs,
            "page_granules": page_granules,
            "vocabulary": model.vocab_size,
        }
        self.groups = {
            role: RunnerGroup(self, scheduler, self._topology.groups[role], pages, sizes, seed)
            for role, scheduler in self.schedulers.items()
        }
        self.group = self.groups[roles[0]]
        self.actors = {
            "tokenizer": self.tokenizer,
            **({"router": Router(self.config)} if replicas > 1 else {}),
            **self.schedulers,
            "detokenizer": self.detokenizer,
            "adapters": self.store,
        }
        self.oracle = Oracle(
            model,
            self.config,
            pages=pages,
            adapter_pages={
                name: -(-2 * -(-rank // 8) // page_granules)
                for name, rank in (lora_ranks | dict.fromkeys(invocations, 2)).items()
            },
            digest=self._digest,
            vanished={"gone"},
            invocations=invocations,
        )
        self._mailboxes = {}
        for role, actor in list(self.actors.items()):
            self.spawn(role, actor)
        for group in self.groups.values():
            group.begin()
        self._leaving = {}
        self._events = 0

    @property
    def engine(self):
        """Of the first runner."""
        return self.group.engines[0]

    @property
    def runners(self):
        return [role for group in self._topology.groups.values() for role in group]

    def spawn(self, role, actor, epoch=1):
        """Let an actor live."""
        self.actors[role] = actor
        self._mailboxes[role] = self.world.spawn(role, actor, epoch=epoch)

    def join(self, name, plans, *, turn_ns=None, leaving=None):
        """``leaving`` is after how many messages, and how: "kill" or "retire"."""
        client = ScriptedClient(plans)
        self.clients[name] = client
        if leaving is not None:
            self._leaving[name] = leaving
        self.world.spawn(CLIENT, client, name=name, turn_ns=turn_ns)
        return client

    def run(self, *, limit_s=600.0):
        """Until every client that is there has all its answers and nobody has anything to do."""
        self.wait(self._is_over, limit_s=limit_s)
        settled_ns = self.world.now_ns + self._settle_ns
        self.wait(lambda: self.world.now_ns >= settled_ns and self._is_over(), limit_s=limit_s)
        self.world.check()

    def wait(self, holds, *, limit_s=600.0):
        """Let time pass, clients leave, and invariants be checked now and then."""
        self.world.run_until(lambda: self._tend() or holds(), limit_s=limit_s)

    def leave(self, name, *, how="kill"):
        """A client vanishes, or says Goodbye."""
        getattr(self.world, how)(name)
        self.left[name] = self.clients.pop(name)

    def drain(self):
        """Stop the actors one after the other, each as soon as it is done, as the launcher does.

        A process reads what its sockets hold before it exits.
        """
        for process in self._topology.processes:
            role = process.role
            if role in self.actors:
                self.actors[role].drain()
                self.wait(lambda role=role: self._is_idle(role) and not self.world.has_mail(role))
                self.world.retire(role)
        read_ns = self.world.now_ns + SLOW_TURN_NS
        self.wait(lambda: not self.clients or self.world.now_ns >= read_ns)

    def sections(self):
        """What every actor says that it holds, asked over the wire."""
        client = self.join("inspector", [])
        client.inspect()
        self.world.run_until(lambda: client.reports)
        self.leave("inspector", how="retire")
        return client.reports[0].sections

    def assert_all_is_back(self):
        assert all(map(self._is_idle, self.actors))
        sections = self.sections()
        assert sections.keys() == self.actors.keys()
        store = sections["adapters"]
        for scheduler in map(sections.get, self.schedulers):
            for name in (
                "requests", "sequences", "waiting", "rows_running", "pages_sequences",
                "adapter_pins", "adapters_held",
            ):  # fmt: skip
                assert scheduler[name] == 0, name
            kinds = ("free", "cached", "adapters_idle", "adapters_held")
            idle = sum(scheduler[f"pages_{kind}"] for kind in kinds)
            assert idle == scheduler["pages"]
        router = sections.get("router", {})
        assert not any(router[name] for name in router if not name.endswith("_total")), router
        assert store["pinned"] == store["waiting"] == 0
        assert len(self.files.written) == store["loaded"]
        places = self.config.max_cpu_loras
        assert places is None or store["loaded"] <= places + store["kept"]
        assert sum(map(len, self.files.written.values())) == store["loaded_bytes"]
        assert store["loaded_bytes"] <= store["bytes_max"]
        assert store["loading_bytes"] == 0
        assert sections["tokenizer"]["waiting"] == sections["tokenizer"]["replies_unread"] == 0
        for name in ("sequences", "clients", "characters_unsent"):
            assert sections["detokenizer"][name] == 0, name
        for role in self.runners:
            assert sections[role]["rows"] == 0
        for mailbox in self._mailboxes.values():
            has_former = any(group.lives > 1 for group in self.groups.values())
            harmless = HARMLESS_FAULTS | (OF_FORMER_LIVES if has_former else set())
            assert mailbox.endpoint.faults.keys() <= harmless, mailbox.endpoint.last_fault

    def assert_answered(self, plan, heard):
        """Assert that a request was accepted, and answered as it must be."""
        assert heard.accepted is not None, heard.refused
        self.oracle.check(plan, heard)

    def assert_all_are_answered(self, *, is_drained=False):
        """Assert that every answer is what it must be, or a cut of it that was asked for."""
        for clients, is_cut_off in ((self.clients, False), (self.left, True)):
            for client in clients.values():
                for plan in client.plans:
                    heard = client.heard[plan.submit.label]
                    self.oracle.check(plan, heard, is_cut_off=is_cut_off, is_drained=is_drained)

    def is_open(self):
        """Whether every link between actors is open."""
        return all(mailbox.is_open for mailbox in self._mailboxes.values())

    def _tend(self):
        self._events += 1
        for group in self.groups.values():
            group.tend()
        if self._events % CHECK_EVENTS == 0:
            self.world.check()
        for name, (messages, how) in list(self._leaving.items()):
            if self.clients[name].messages >= messages:
                del self._leaving[name]
                self.leave(name, how=how)

    def _is_over(self):
        is_answered = all(client.is_over for client in self.clients.values())
        is_there = all(group.is_there for group in self.groups.values())
        return is_answered and is_there and all(map(self._is_idle, self.actors))

    def _is_idle(self, role):
        return self.actors[role].is_idle and self._mailboxes[role].is_flushed

    def _digest(self, name):
        return self.tokenizer._names.adapter(name, "model").digest


def _narrowed(topology, window_max):
    if window_max is None:
        return topology
    edges = [
        edge._replace(
            forward_window=min(edge.forward_window, window_max),
            backward_window=min(edge.backward_window, window_max),
        )
        for edge in topology.edges
    ]
    return topology._replace(edges=tuple(edges))
