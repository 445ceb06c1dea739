"""Rules broken on purpose: the simulator is worth what it catches."""

import pytest
from msgspec import structs

from tests.sim.draw import play
from weft.actors.adapters.cache import HostCache
from weft.actors.detokenizer.actor import Detokenizer
from weft.actors.detokenizer.outbox import Outbox
from weft.actors.scheduler.actor import Scheduler
from weft.actors.scheduler.candidates import Candidates
from weft.actors.scheduler.composer import Composer
from weft.actors.scheduler.host import HostPins
from weft.actors.scheduler.pages import Pages
from weft.actors.scheduler.prefixes import PrefixCache
from weft.actors.scheduler.sequence import Request
from weft.actors.scheduler.slots import AdapterSlots
from weft.actors.tokenizer.prompt import PromptEncoder
from weft.runtime.link import Link
from weft.runtime.messages import Sampled, StopFound

# Most are caught by the first few.
SEEDS = range(100)


def adapters_share_prefixes(monkeypatch):
    find, hold = PrefixCache.find, PrefixCache.hold
    monkeypatch.setattr(
        PrefixCache, "find", lambda self, identity, *rest: find(self, anybody(identity), *rest)
    )
    monkeypatch.setattr(
        PrefixCache, "hold", lambda self, identity, *rest: hold(self, anybody(identity), *rest)
    )


def anybody(identity):
    return identity._replace(uses=())


def scales_share_prefixes(monkeypatch):
    request = Request.__post_init__

    def unscaled(self):
        request(self)
        uses = tuple((digest, 1.0) for digest, _ in self.identity.uses)
        self.identity = self.identity._replace(uses=uses)

    monkeypatch.setattr(Request, "__post_init__", unscaled)


def activated_adapters_act_at_once(monkeypatch):
    monkeypatch.setattr(PromptEncoder, "lora_start", lambda self, *request: 0)


def what_activated_adapters_compute_is_taken_for_the_bases(monkeypatch):
    edge, add = PrefixCache._edge, PrefixCache._add

    def plain(self, identity, *page):
        return edge(self, anybody(identity) if identity.start else identity, *page)

    def unlisted(self, holding, edge):
        if holding.identity.start:
            holding.identity = anybody(holding.identity)
        add(self, holding, edge)

    monkeypatch.setattr(PrefixCache, "_edge", plain)
    monkeypatch.setattr(PrefixCache, "_add", unlisted)


def slots_are_filled_while_they_are_used(monkeypatch):
    load = AdapterSlots.load

    def first(self, *given, **more):
        return structs.replace(load(self, *given, **more), slot=0)

    monkeypatch.setattr(AdapterSlots, "load", first)


def steps_wait_for_copies(monkeypatch):
    monkeypatch.setattr(Composer, "_waits_for_copy", lambda self, sequence: False)


def pages_of_adapters_are_given_away(monkeypatch):
    load = AdapterSlots.load

    def generous(self, *given, **more):
        loaded = load(self, *given, **more)
        self._pages.give_back(loaded.pages[-1:])
        return loaded

    monkeypatch.setattr(AdapterSlots, "load", generous)
    monkeypatch.setattr(Pages, "check", lambda self, *owned: None)  # it would see it at once


def files_are_released_before_they_are_read(monkeypatch):
    release = HostPins.release
    monkeypatch.setattr(
        HostPins, "release", lambda self, needed, steps_done: release(self, needed, 1 << 60)
    )


def adapters_cost_nothing(monkeypatch):
    need = Candidates._need

    def generous(self, sequence):
        found = need(self, sequence)
        return found._replace(adapter_pages=(0,) * len(found.adapter_pages))

    monkeypatch.setattr(Candidates, "_need", generous)


def preempted_sequences_are_resumed_where_they_were(monkeypatch):
    preempt = Composer._preempt

    def forgetful(self, sequence):
        computed = sequence.computed
        preempt(self, sequence)
        sequence.tokens = sequence.tokens[:computed]

    monkeypatch.setattr(Composer, "_preempt", forgetful)


def some_sequences_keep_their_pages(monkeypatch):
    release = Composer._release

    def keeping(self, sequence):
        if sequence.output_tokens % 7 != 3:
            release(self, sequence)
        sequence.holding = None

    monkeypatch.setattr(Composer, "_release", keeping)


def pinned_files_are_evicted(monkeypatch):
    monkeypatch.setattr(HostCache, "_can_hold", lambda self, digest, size_bytes: True)

    def evictable(self, wanted=()):
        for digest in reversed(list(self._residents)):
            self._pins.pop(digest, None)
            yield digest

    monkeypatch.setattr(HostCache, "_evictable", evictable)


def stop_strings_are_not_heard_of(monkeypatch):
    receive = Scheduler.receive

    def deaf(self, source, message, now_ns):
        return [] if isinstance(message, StopFound) else receive(self, source, message, now_ns)

    monkeypatch.setattr(Scheduler, "receive", deaf)
    # Of what the detokenizer says instead, only the count would be right.
    monkeypatch.setattr(Detokenizer, "_end", _end_as_the_scheduler_says)


def _end_as_the_scheduler_says(self, end):
    live = self._live.pop(end.sequence, None)
    if live is not None:
        outbox = self._outboxes[live.client]
        outbox.add(end.sequence, live.text.finish())
        outbox.end(end)


def text_is_merged_in_the_wrong_order(monkeypatch):
    add = Outbox.add

    def reversing(self, sequence, piece):
        add(self, sequence, piece)
        if sequence in self._unsent:
            self._unsent[sequence].pieces.reverse()
            self._unsent[sequence].pieces.rotate()

    monkeypatch.setattr(Outbox, "add", reversing)
    monkeypatch.setattr("weft.actors.detokenizer.outbox.PIECE_CHARACTERS_MAX", 0)


def logprobs_go_to_the_first_row(monkeypatch):
    finish = Scheduler._finish_step

    def shifting(self, done, now_ns):
        sends = finish(self, done, now_ns)
        for send in sends:
            if isinstance(send.message, Sampled) and len(send.message.sequences) > 1:
                kept = [structs.replace(item, index=0) for item in send.message.logprobs[:1]]
                send.message.logprobs[:1] = kept
        return sends

    monkeypatch.setattr(Scheduler, "_finish_step", shifting)


def failed_rows_go_on(monkeypatch):
    finish = Scheduler._finish_step
    monkeypatch.setattr(
        Scheduler,
        "_finish_step",
        lambda self, done, now_ns: finish(self, structs.replace(done, failed=[]), now_ns),
    )


def credit_is_not_kept(monkeypatch):
    monkeypatch.setattr(Link, "room", 10)


def acknowledgements_are_not_sent(monkeypatch):
    receive = Link.receive

    def silent(self, envelope, message):
        self._told = self._taken
        return receive(self, envelope, message)

    monkeypatch.setattr(Link, "receive", silent)


def play_all(model, folder):
    for seed in SEEDS:
        flow = play(seed, model, folder)
        flow.run()
        flow.assert_all_are_answered()
        flow.assert_all_is_back()


@pytest.mark.parametrize(
    "break_rule",
    [
        adapters_share_prefixes,
        scales_share_prefixes,
        activated_adapters_act_at_once,
        what_activated_adapters_compute_is_taken_for_the_bases,
        slots_are_filled_while_they_are_used,
        steps_wait_for_copies,
        pages_of_adapters_are_given_away,
        files_are_released_before_they_are_read,
        adapters_cost_nothing,
        preempted_sequences_are_resumed_where_they_were,
        some_sequences_keep_their_pages,
        pinned_files_are_evicted,
        stop_strings_are_not_heard_of,
        text_is_merged_in_the_wrong_order,
        logprobs_go_to_the_first_row,
        failed_rows_go_on,
        credit_is_not_kept,
        acknowledgements_are_not_sent,
    ],
    ids=lambda rule: rule.__name__,
)
def test_a_broken_rule_is_caught(break_rule, monkeypatch, model, folder):
    break_rule(monkeypatch)
    with pytest.raises((AssertionError, TimeoutError)):
        play_all(model, folder)
