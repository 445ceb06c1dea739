"""Adapters that come and go while they are used, held against a model of what names mean."""

from collections import Counter

import pytest

from tests.sim.shelves import CONTENTS, NAMES, Shelves
from weft.actors.adapters.actor import AdapterStore
from weft.actors.adapters.leaving import Leaving
from weft.actors.router.ledger import Ledger
from weft.runtime.messages import Acquire, Release, Retire, Sampling, Submit, UnloadAdapter

TIGHT = {"pages": 24, "max_loras_per_batch": 2, "max_loaded_loras": 3}

FILE_BYTES = 352  # of every adapter here

# Host memory holds three of them beside what is pinned, or three and a half, of which one may be.
PLACES = {"max_cpu_loras": 3}
BYTES = {"max_cpu_loras": None, "adapter_host_memory_mib": 3.5 * FILE_BYTES / 2**20}


def walk(seed, model, folder, steps, **options):
    shelves = Shelves(seed, model, folder, **(TIGHT | options))
    for _ in range(steps):
        shelves.step()
    shelves.finish()
    return shelves


def walk_all(model, folder, **options):
    for seed in range(60):
        walk(seed, model, folder, 150, **options)


def was_hard(scheduler):
    """Whether room on the device was short, or was lost again and again."""
    return scheduler["adapter_evictions_total"] + 2 * scheduler["runners_lost_total"] > 10


@pytest.mark.parametrize("seed", range(6))
def test_every_name_means_what_was_last_answered(seed, model, folder):
    bounds = BYTES if seed % 3 else PLACES
    walk(seed, model, folder, 150, ranks=1 + seed % 2, replicas=1 + seed // 2 % 2, **bounds)


def test_host_memory_keeps_within_its_bytes_though_much_is_pinned(model, folder):
    seen, evictions = Counter(), 0
    for seed in range(20, 24):
        shelves = walk(seed, model, folder, 150, **BYTES)
        seen.update(shelves.counts)
        evictions += shelves.flow.sections()["adapters"]["evictions_total"]
    assert evictions > 10
    assert seen["pinned"] > 2
    assert seen["invalid_value"] > 2  # more than half would have been pinned


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_ten_thousand_operations_leave_every_name_right(seed, model, folder):
    bounds = BYTES if seed % 2 else PLACES
    shelves = walk(seed, model, folder, 1000, is_deadly=seed % 4 > 1, **bounds)
    seen = {"loaded", "replaced", "already_loaded", "unloaded", "pinned", "unpinned"}
    assert seen <= shelves.counts.keys()
    assert was_hard(shelves.flow.sections()["scheduler"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200, 210))
def test_ten_thousand_operations_leave_every_name_right_at_two_replicas(seed, model, folder):
    bounds = BYTES if seed % 2 else PLACES
    is_deadly = seed % 4 > 1
    shelves = walk(
        seed, model, folder, 1000, replicas=2, clients=3, is_deadly=is_deadly, **bounds
    )  # fmt: skip
    seen = {"loaded", "replaced", "already_loaded", "unloaded", "pinned", "unpinned"}
    assert seen <= shelves.counts.keys()
    sections = shelves.flow.sections()
    for scheduler in shelves.flow.schedulers:
        assert was_hard(sections[scheduler])
    assert min(sections["router"][f"replica{r}_requests_total"] for r in range(2)) > 50


def test_content_is_gone_only_once_nobody_uses_it(model, folder):
    """The handover: an unload right behind a request, while the request is on its way."""
    for seed in range(10):
        shelves = Shelves(seed, model, folder, **TIGHT)
        walker = shelves.walkers[0]
        digest = shelves.means[NAMES[0]]
        for number in range(4):
            sampling = Sampling(max_tokens=30, seed=number, ignore_eos=True)
            walker.say(Submit(f"r{number}", NAMES[0], prompt="x", sampling=sampling))
        walker.say(UnloadAdapter("u", NAMES[0]))
        walker.say(Submit("r4", NAMES[0], prompt="x"))
        shelves.flow.wait(
            lambda walker=walker: (
                walker.operations["u"] is not None
                and all(heard.is_over for heard in walker.requests.values())
            )
        )
        assert walker.operations["u"].outcome == "unloaded"
        for number in range(5):
            heard = walker.requests[f"r{number}"]
            # Each was taken in before the name went, or refused as the name was gone.
            if heard.refused is None:
                assert heard.ends[0].reason in ("stop", "length"), heard
            else:
                assert heard.refused.code == "model_not_found"
        walker.say(Submit("late", NAMES[0], prompt="x"))
        shelves.flow.wait(lambda walker=walker: walker.requests["late"].is_over)
        assert walker.requests["late"].refused.code == "model_not_found"
        composer = shelves.flow.scheduler._composer
        assert digest not in composer.slots.resident
        assert digest not in composer.cache._branches
        assert not any(digest in path for path in shelves.flow.files.written)
        assert shelves.flow.store._registry.sources(digest) == []


def content_goes_as_soon_as_its_name_has(monkeypatch):
    leave = Leaving.leave

    def at_once(self, digest, version):
        leave(self, digest, version)
        self._left[digest].version = 0

    monkeypatch.setattr(Leaving, "leave", at_once)


def what_has_come_back_is_dropped_all_the_same(monkeypatch):
    monkeypatch.setattr(Leaving, "return_", lambda self, digest: [])


def an_unload_is_answered_before_the_last_request_ends(monkeypatch):
    def hasty(self, version):
        return [Retire(digest, 0) for digest in list(self._left)]

    monkeypatch.setattr(Leaving, "seen", hasty)


def what_comes_is_kept_only_once_its_predecessor_has_left(monkeypatch):
    """So what leaves may take the place of what has just come, though it is pinned."""
    register, keep_or_not = AdapterStore._register, AdapterStore._keep_or_not

    def hesitant(self, reading, adapter, *, pinned=None):
        with monkeypatch.context() as patch:
            patch.setattr(
                AdapterStore,
                "_keep_or_not",
                lambda self, digest: digest == adapter.digest or keep_or_not(self, digest),
            )
            register(self, reading, adapter, pinned=pinned)
        self._keep_or_not(adapter.digest)

    monkeypatch.setattr(AdapterStore, "_register", hesitant)


@pytest.mark.parametrize(
    "break_rule",
    [
        content_goes_as_soon_as_its_name_has,
        what_has_come_back_is_dropped_all_the_same,
        an_unload_is_answered_before_the_last_request_ends,
        pytest.param(what_comes_is_kept_only_once_its_predecessor_has_left, marks=pytest.mark.slow),
    ],
    ids=lambda rule: rule.__name__,
)
def test_a_broken_rule_of_leaving_is_caught(break_rule, monkeypatch, model, folder):
    break_rule(monkeypatch)
    with pytest.raises((AssertionError, TimeoutError, KeyError)):
        walk_all(model, folder)


def one_schedulers_retirement_is_enough(monkeypatch):
    retired = Leaving.retired

    def hasty(self, scheduler, digest, version):
        if digest in self._left:
            self._left[digest].holders = {scheduler}
        return retired(self, scheduler, digest, version)

    monkeypatch.setattr(Leaving, "retired", hasty)


def catalogs_overtake_requests_that_look_for_a_replica(monkeypatch):
    monkeypatch.setattr(Ledger, "oldest_pending", None)


def one_scheduler_holds_every_pin(monkeypatch):
    receive = AdapterStore.receive

    def confused(self, source, message, now_ns):
        is_pin = isinstance(message, Acquire | Release)
        return receive(self, self._schedulers[0] if is_pin else source, message, now_ns)

    monkeypatch.setattr(AdapterStore, "receive", confused)


@pytest.mark.parametrize(
    ("break_rule", "options"),
    [
        (one_schedulers_retirement_is_enough, {}),
        (
            catalogs_overtake_requests_that_look_for_a_replica,
            {"max_queued_requests": 2, "max_num_seqs": 1},
        ),
        (one_scheduler_holds_every_pin, {}),
    ],
    ids=lambda rule: getattr(rule, "__name__", ""),
)
def test_a_broken_rule_of_several_schedulers_is_caught(
    break_rule, options, monkeypatch, model, folder
):
    break_rule(monkeypatch)
    with pytest.raises((AssertionError, TimeoutError, KeyError)):
        walk_all(model, folder, replicas=2, **options)


def test_contents_are_as_many_as_the_model_says(model, folder):
    shelves = Shelves(0, model, folder)
    assert len(set(shelves.digests.values())) == len(CONTENTS)
    assert not set(shelves.digests.values()) & set(shelves.means.values())
