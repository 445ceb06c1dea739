"""The store under any order of events: what it promises holds after each."""

import random
from collections import Counter, deque

import pytest

from tests.actors.adapters.folders import folder, tensors
from tests.actors.adapters.shelf import Shelf
from weft.runtime.messages import Acquire, Acquired, Release

UNKNOWN = "0" * 64
PLACES = 3


class Walk:
    """A shelf, and what a scheduler knows of it: what it has asked for, and its pins."""

    def __init__(self, seed, policy):
        self.rng = random.Random(seed)
        self.shelf = Shelf("abcdefgh", places=PLACES, policy=policy)
        digests = {name: entry.digest for name, entry in self.shelf.catalog().items()}
        self.shelf.files.folders["/g"] = folder(weights=tensors(seed=0))  # changed since
        self.bad = {digests["g"], UNKNOWN}
        self.digests = [*digests.values(), UNKNOWN]
        self.asked = deque()
        self.pins = Counter()
        self.answers = Counter()

    def act(self):
        """Ask for something, give something back, be lost, or do nothing."""
        match self.rng.randrange(40):
            case 0:
                assert self.shelf.store.lost("scheduler", 0) == []
                self.asked.clear()
                self.pins.clear()
            case number if number <= 10 and len(self.asked) < 8:
                digest = self.rng.choice(self.digests)
                self.asked.append(digest)
                self.shelf.hear(Acquire(digest))
            case number if number > 20 and +self.pins:
                self.release(self.rng.choice(sorted(+self.pins)))

    def release(self, digest):
        self.pins[digest] -= 1
        self.shelf.hear(Release(digest))

    def turn(self):
        for to, answer in self.shelf.advance():
            assert to == "scheduler"
            self.asked.remove(answer.digest)
            good = isinstance(answer, Acquired)
            assert good == (answer.digest not in self.bad)
            self.answers[good] += 1
            if good:
                self.pins[answer.digest] += 1
                assert len(self.shelf.files.written[answer.path]) == answer.size_bytes
        written = self.shelf.files.written
        held = {path.split("/")[-1].removesuffix(".safetensors") for path in written}
        assert (+self.pins).keys() <= held
        assert len(held - self.partial(held)) <= PLACES

    def partial(self, held):
        return {name for name in held if name.endswith(".partial")}


@pytest.mark.parametrize("policy", ["lru", "fifo"])
@pytest.mark.parametrize("seed", range(6))
def test_every_pin_is_answered_once_and_what_is_pinned_stays(seed, policy):
    walk = Walk(seed, policy)
    for _ in range(600):
        walk.shelf.room["scheduler"] = walk.rng.choice([0, 1, 5])
        walk.shelf.loader.is_slow = walk.rng.random() < 0.5
        walk.act()
        walk.turn()
    walk.shelf.room["scheduler"] = 9
    walk.shelf.loader.is_slow = False
    while walk.asked or +walk.pins:
        for digest in list(walk.pins.elements()):
            walk.release(digest)
        walk.turn()
    assert walk.shelf.store.is_idle
    assert walk.answers[True] > 60
    assert walk.answers[False] > 10
    counters = walk.shelf.counters()
    assert (counters["pinned"], counters["waiting"], counters["loading_bytes"]) == (0, 0, 0)
    # Somebody may have gone for one that could not be read.
    assert PLACES - 1 <= counters["loaded"] <= PLACES
    assert counters["evictions_total"] > 20


def test_equal_events_give_equal_answers():
    def run():
        rng = random.Random(1)
        shelf = Shelf("abcd")
        digests = [entry.digest for entry in shelf.catalog().values()]
        sends = []
        for _ in range(100):
            digest = rng.choice(digests)
            shelf.hear(rng.choice([Acquire, Release])(digest))
            sends += shelf.advance()
        return sends, dict(shelf.files.written)

    assert run() == run()
