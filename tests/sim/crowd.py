"""Clients that change the same adapters at the same time, over a network that may be very slow."""

from collections import Counter

from tests.sim.shelves import BROKEN, CONTENTS, NAMES, Shelves
from weft.runtime.messages import (
    Cancel,
    ListAdapters,
    LoadAdapter,
    PinAdapter,
    PrefetchAdapter,
    Refused,
    Sampling,
    Submit,
    UnloadAdapter,
)
from weft.runtime.simulate import FAIR, Conditions

# A fast network and slow actors, the reverse, both slow, or neither.
CONDITIONS = (
    FAIR,
    Conditions(latency_ns=(1_000, 50_000_000)),
    Conditions(latency_ns=(1_000, 200_000), turn_ns=(1_000, 30_000_000)),
    Conditions(latency_ns=(1_000, 300_000_000), turn_ns=(1_000, 50_000_000)),
)


class Crowd(Shelves):
    """Random operations on few names, several at once on each: nobody can say what it means then.

    So of each answer only its kind is looked at. But all are answered, every invariant holds at
    every moment, and what is left at the end is what names mean, and in host memory what is pinned.
    """

    def __init__(self, seed, model, folder, **options):
        conditions = CONDITIONS[seed % len(CONDITIONS)]
        super().__init__(seed, model, folder, conditions=conditions, **options)
        self._names = NAMES[: self.rng.choice((2, 3, 5))]

    def step(self):
        """Do one random thing, and let some time pass."""
        rng = self.rng
        self._label += 1
        walker, message = rng.choice(self.walkers), self._draw(f"l{self._label}")
        if message is not None:
            walker.say(message)
        self._kill_somebody()
        self._pass_time((0, 0, 100_000, 3_000_000, 20_000_000))

    def finish(self):
        """Let everything end; return how often each answer was heard."""
        walkers = self.walkers
        self.flow.wait(
            lambda: all(
                None not in walker.operations.values()
                and all(heard.is_over for heard in walker.requests.values())
                for walker in walkers
            )
        )
        self.flow.run()
        self.flow.assert_all_is_back()
        registry = self.flow.store._registry
        wanted = {entry.digest for entry in registry}
        self._assert_nothing_is_left(wanted)
        in_host = self._in_host_memory()
        for name in self._names:
            assert not registry.is_pinned(name) or registry.find(name).digest in in_host
        answers = [answer for walker in walkers for answer in walker.operations.values()]
        return Counter(
            answer.code if isinstance(answer, Refused) else answer.outcome for answer in answers
        )

    def _draw(self, label):
        rng, name = self.rng, self.rng.choice(self._names)
        kinds = ("request", "cancel", "load", "unload", "pin", "prefetch", "list", "wait")
        match rng.choices(kinds, (40, 4, 20, 14, 8, 4, 3, 8))[0]:
            case "request":
                names = rng.sample(self._names, rng.choice((1, 1, 1, 2)))
                sampling = Sampling(max_tokens=rng.choice((1, 4, 12)), seed=rng.randrange(3))
                return Submit(label, "+".join(names), prompt="The quick", sampling=sampling)
            case "cancel":
                return Cancel(f"l{rng.randint(1, self._label)}")
            case "load":
                source, pinned = rng.choice((*CONTENTS, BROKEN)), rng.choice((None, True, False))
                return LoadAdapter(label, name, source, replace=rng.random() < 0.7, pinned=pinned)
            case "unload":
                return UnloadAdapter(label, name)
            case "pin":
                pinned, on_device = rng.random() < 0.5, rng.random() < 0.5
                return PinAdapter(label, name, pinned=pinned, on_device=on_device)
            case "prefetch":
                return PrefetchAdapter(label, name)
            case "list":
                return ListAdapters(label)
            case _:
                return None
