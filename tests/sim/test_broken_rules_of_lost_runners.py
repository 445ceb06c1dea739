"""What must hold when runners die, broken on purpose: the simulator is worth what it catches."""

import pytest

from tests.sim import runner_group
from tests.sim.flow import ADAPTERS, Flow
from tests.sim.test_lost_runners import assert_given_up, play, poisoned, simple
from weft.actors.scheduler.actor import Scheduler
from weft.actors.scheduler.candidates import Candidates
from weft.actors.scheduler.composer import Composer
from weft.actors.scheduler.host import HostPins
from weft.actors.scheduler.loading import Loading
from weft.actors.scheduler.sequence import Sequence
from weft.actors.scheduler.suspects import Suspects
from weft.runtime.messages import StepDone
from weft.runtime.peers import Peers

pytestmark = pytest.mark.slow

SEEDS = range(60)


def late_answers_are_taken(monkeypatch):
    receive = Scheduler.receive

    def trusting(self, source, message, now_ns):
        if isinstance(message, StepDone):
            return self._finish_step(message, now_ns)
        return receive(self, source, message, now_ns)

    monkeypatch.setattr(Scheduler, "receive", trusting)


ADMIT = Peers.admit


def frames_of_former_lives_are_heard(monkeypatch):
    monkeypatch.setattr(Peers, "admit", _admit_without_a_word)


def _admit_without_a_word(self, name, identity, edge, *, epoch, window):
    admitted = ADMIT(self, name, identity, edge, epoch=epoch, window=window)
    return admitted and name not in self.processes  # clients alone


def what_the_prefix_cache_held_is_thought_to_be_there(monkeypatch):
    _remember(monkeypatch, keeps_adapters=False)


def adapters_are_thought_to_be_on_the_device(monkeypatch):
    _remember(monkeypatch, keeps_adapters=True)


def _remember(monkeypatch, *, keeps_adapters):
    """Let the next life begin with the last one's pages, and one of the two that own them."""
    lose, make = Scheduler._lose_runners, Composer.__init__
    last = {}

    def losing(self):
        composer = last[id(self)] = self._composer
        for sequence in reversed(list(composer.rows)):
            composer._preempt(sequence)
        for sequence in self._requests.sequences:
            composer._release(sequence)
        if keeps_adapters:
            for adapter in list(composer.cache._branches):
                composer.cache.drop(adapter)
            for node in reversed(list(composer.cache._nodes())):  # the base's
                composer.pages.evict(node)
        else:
            for digest in list(composer.slots.resident):
                composer.slots.drop(digest)
        return lose(self)

    def making(self, config, ready, waiting, host):
        make(self, config, ready, waiting, host)
        for composer in last.values():
            self.pages, self.cache, self.slots = composer.pages, composer.cache, composer.slots
        slots, pages, rows = self.slots, self.pages, self.rows
        self.loading = Loading(waiting, host, slots=slots, pages=pages, rows=rows)
        self.candidates = Candidates(config, waiting, cache=self.cache, loading=self.loading)
        last.clear()

    monkeypatch.setattr(Scheduler, "_lose_runners", losing)
    monkeypatch.setattr(Composer, "__init__", making)


def who_ran_is_forgotten(monkeypatch):
    lose = Scheduler._lose_runners

    def forgetful(self):
        running = [s for s in self._requests.sequences if s.row is not None]
        sends = lose(self)
        for sequence in running:
            if not sequence.is_over:
                self._waiting.remove(sequence)
        return sends

    monkeypatch.setattr(Scheduler, "_lose_runners", forgetful)
    monkeypatch.setattr(Scheduler, "check", lambda self: None)


def tokens_that_were_shown_are_drawn_again(monkeypatch):
    lose = Sequence.lose_device

    def forgetful(self):
        lose(self)
        del self.tokens[len(self.request.generate.prompt) :]

    monkeypatch.setattr(Sequence, "lose_device", forgetful)


def what_was_ordered_counts_as_known(monkeypatch):
    def hopeful(self):
        self.row = self.holding = None

    monkeypatch.setattr(Sequence, "lose_device", hopeful)


def host_memory_is_forgotten(monkeypatch):
    lose = Scheduler._lose_runners

    def forgetful(self):
        self._host = HostPins(self._config.max_loaded_loras, self._config.host_memory_bytes)
        return lose(self)

    monkeypatch.setattr(Scheduler, "_lose_runners", forgetful)


def inspections_go_with_their_runners(monkeypatch):
    lose = Scheduler._lose_runners

    def forgetful(self):
        self._visits.end()
        return lose(self)

    monkeypatch.setattr(Scheduler, "_lose_runners", forgetful)


@pytest.mark.parametrize(
    "break_rule",
    [
        late_answers_are_taken,
        frames_of_former_lives_are_heard,
        what_the_prefix_cache_held_is_thought_to_be_there,
        adapters_are_thought_to_be_on_the_device,
        who_ran_is_forgotten,
        tokens_that_were_shown_are_drawn_again,
        what_was_ordered_counts_as_known,
        host_memory_is_forgotten,
        inspections_go_with_their_runners,
    ],
    ids=lambda rule: rule.__name__,
)
def test_a_broken_rule_is_caught(break_rule, monkeypatch, model, folder):
    # The next life begins before the last words of this one have come.
    monkeypatch.setattr(runner_group, "REAPING_NS", (0, 0))
    break_rule(monkeypatch)
    with pytest.raises((AssertionError, TimeoutError, KeyError)):
        play_all(model, folder)


def play_all(model, folder):
    for seed in SEEDS:
        flow = play(seed, model, folder)
        flow.run()
        flow.assert_all_are_answered()
        flow.assert_all_is_back()


# ---- requests that kill their runners ------------------------------------------------------------


def nobody_is_suspected(monkeypatch):
    monkeypatch.setattr(Suspects, "alone", None)


def whoever_was_there_is_guilty(monkeypatch):
    def severe(self, computed):
        living = sorted((s for s in computed if not s.is_over), key=lambda s: s.number)
        return living[0].request if living else None

    monkeypatch.setattr(Suspects, "died", severe)


def suspects_are_not_alone(monkeypatch):
    monkeypatch.setattr(Composer, "let_alone", lambda self, request: None)


def nobody_is_trusted_again(monkeypatch):
    monkeypatch.setattr(Suspects, "clear", lambda self: None)


@pytest.mark.parametrize(
    "break_rule",
    [
        nobody_is_suspected,
        whoever_was_there_is_guilty,
        suspects_are_not_alone,
        nobody_is_trusted_again,
    ],
    ids=lambda rule: rule.__name__,
)
def test_a_broken_rule_about_requests_that_kill_is_caught(break_rule, monkeypatch, model, folder):
    break_rule(monkeypatch)
    with pytest.raises((AssertionError, TimeoutError)):
        play_poisoned(model, folder)


def play_poisoned(model, folder):
    flow = Flow(1, model, folder)
    made = [simple(f"r{i}", ADAPTERS[i % 5], seed=i, max_tokens=60) for i in range(8)]
    bad = poisoned("bad", ADAPTERS[0])
    client = flow.join("ann", [*made, bad])
    flow.run(limit_s=20.0)
    for plan in made:
        flow.assert_answered(plan, client.heard[plan.submit.label])
    assert_given_up(client.heard["bad"])
