"""The runners of a simulated weft, and what its launcher does when one of them dies."""

import random

from tests.sim.fake_engine import FakeEngine
from weft.actors.runner.actor import Runner
from weft.actors.scheduler.suspects import DEATHS_MAX

# Until the launcher has ended the others, has started all again, and they have loaded the weights.
# Often before what the dead have said last has arrived.
REAPING_NS = (0, 500_000)
LOADING_NS = (0, 40_000_000)

# After a step was sent: it is under way, is computed, or its answer is under way.
DYING_NS = (0, 3_000_000)

# A request with this seed kills whoever computes it once it has so many tokens.
POISON_SEED = 666
POISON_TOKENS = 4


class Stuck:
    """A step that never ends."""

    is_done = False


class LoadingEngine(FakeEngine):
    """A model that looks for the files that it is told to load, and dies of some requests.

    Only the first rank looks: it answers once all have opened the files.
    """

    def __init__(self, files, die, **sizes):
        super().__init__(**sizes)
        self._files = files
        self._die = die

    def launch(self, step):
        for load in step.loads if self.ready().rank == 0 else ():
            assert load.digest in load.path
            assert load.path in self._files.written, f"{load.path} was removed too early"
        launched = super().launch(step)
        if any(map(_is_poisoned, self._rows.values())):
            self._die()
            return Stuck()
        return launched


class RunnerGroup:
    """The runners of one scheduler.

    Ranks beyond the first compute the same tokens, and nobody waits for them.
    """

    def __init__(self, flow, scheduler, roles, pages, sizes, seed):
        self.engines = []
        self.roles = roles
        self.lives = 0
        self.kills = []  # to come: (after how many steps, which rank)
        self._scheduler = scheduler
        self._random = random.Random(f"lives {roles} {seed}")
        self._dies_at_ns = None
        self._dies = 0  # which rank
        self._flow = flow
        self._pages = pages
        self._sizes = {**sizes, "copy_steps": seed % 4}
        self._due = []  # (when, what), in order
        self._living = set()

    @property
    def is_there(self):
        return not self._due and self._scheduler._composer is not None

    def begin(self):
        """All start at once; each is ready when it has loaded the weights."""
        flow = self._flow
        self.lives += 1
        self.engines = [
            LoadingEngine(flow.files, self._die, pages=self._pages + rank, rank=rank, **self._sizes)
            for rank in range(len(self.roles))
        ]
        name = self._scheduler._replica.scheduler
        for role, engine in zip(self.roles, self.engines, strict=True):
            runner = Runner(engine, role=role, scheduler=name, epoch=self.lives)
            flow.spawn(role, runner, self.lives)
            self._living.add(role)
            if self.lives > 1:
                flow.world.pause(role, self._random.randint(*LOADING_NS) / 1e9)

    def kill(self, rank=0):
        """One dies; the others a little later, and then they are started again."""
        if self._due:
            return  # somebody was faster
        role = self.roles[rank]
        self._flow.world.kill(role)
        self._living.remove(role)
        reaped_ns = self._flow.world.now_ns + self._random.randint(*REAPING_NS)
        begun_ns = reaped_ns + self._random.randint(*REAPING_NS)
        self._due = [(reaped_ns, self._reap), (begun_ns, self.begin)]

    def tend(self):
        """Do what is due."""
        now_ns = self._flow.world.now_ns
        if self._dies_at_ns is None and self.kills and not self._due:
            steps, rank = self.kills[0]
            if steps <= self._scheduler._in_flight.sent:
                self.kills.pop(0)
                if not self._would_blame_somebody():
                    self._die(rank, now_ns + self._random.randint(*DYING_NS))
        if self._dies_at_ns is not None and self._dies_at_ns <= now_ns:
            self._dies_at_ns = None
            self.kill(self._dies)
        while self._due and self._due[0][0] <= now_ns:
            self._due.pop(0)[1]()

    def _die(self, rank=0, at_ns=0):
        self._dies, self._dies_at_ns = rank, at_ns

    def _would_blame_somebody(self):
        """One more death while it is alone, and a request is given up for what it has not done."""
        doubts = self._scheduler._suspects._doubts.values()
        return any(doubt.deaths_alone == DEATHS_MAX - 1 for doubt in doubts)

    def _reap(self):
        for role in sorted(self._living):
            self._flow.world.kill(role)
        self._living.clear()


def _is_poisoned(row):
    drawn = row.position - row.join.prompt_tokens
    return row.join.sampling.seed == POISON_SEED and drawn >= POISON_TOKENS
