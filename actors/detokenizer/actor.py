"""The detokenizer: sampled tokens in, text out, one message for each client and step."""

from __future__ import annotations

from collections.abc import Sequence as Roles
from typing import NamedTuple, assert_never

from msgspec import structs

from weft.actors.detokenizer.notices import Notices
from weft.actors.detokenizer.outbox import Outbox
from weft.actors.detokenizer.sequence import SequenceText
from weft.actors.detokenizer.stops import StopScanner, StopString
from weft.actors.detokenizer.vocabularies import Vocabularies
from weft.actors.detokenizer.vocabulary import Vocabulary
from weft.runtime.actor import Send, Turn
from weft.runtime.messages import (
    Accepted,
    Begin,
    DetokenizerInbox,
    End,
    Inspection,
    Mark,
    Marked,
    Report,
    Resume,
    Sampled,
    Sequence,
    StopFound,
    Unread,
)
from weft.runtime.replicas import ALONE

# A client that takes nothing for so long is gone, or as good as gone: its requests are cancelled.
# Also ends what was begun for a client that never opened its link, or lost it just before.
STALLED_MAX_NS = 60_000_000_000
STALLED_ERROR = "cancelled: nothing was read for 60 s; read faster, or ask for less at once"


class _Live(NamedTuple):
    client: str
    text: SequenceText


class Detokenizer:
    """Owns the text of live sequences that was not sent yet. The scheduler owns the sequences.

    Invariants, checked by ``check``: a live sequence has its client's outbox, and the other way
    round; an outbox without live sequences has something to send. How many sequences there are is
    bounded by what the scheduler accepts.
    """

    def __init__(
        self, vocabulary: Vocabulary, *, schedulers: Roles[str] = (ALONE.scheduler,)
    ) -> None:
        self._vocabularies = Vocabularies(vocabulary)
        self._live: dict[Sequence, _Live] = {}
        self._outboxes: dict[str, Outbox] = {}
        self._notices = Notices(schedulers)
        self._stops_found_count = 0
        self._clients_stalled_count = 0

    def receive(self, source: str, message: DetokenizerInbox, now_ns: int) -> list[Send]:
        """Take in one message; text leaves with the next ``advance``."""
        match message:
            case Begin():
                self._begin(message)
            case Sampled():
                self._take(source, message)
            case Mark(number):
                self._notices.moved(source, Marked(number))
            case Resume(sequences):
                unread = [sequence for sequence in sequences if sequence not in self._live]
                if unread:
                    self._notices.moved(source, Unread(unread))
            case Inspection(client, label, sections, adapters, tenants, loads):
                self.check()
                sections = {**sections, "detokenizer": self._counters()}
                self._outbox(client).report(Report(label, sections, adapters, tenants, loads))
            case _:
                assert_never(message)
        return []

    def advance(self, turn: Turn) -> list[Send]:
        """Send what the links have room for."""
        sends: list[Send] = []
        for client in list(self._outboxes):
            sends += self._flush(client, turn)
        return sends + self._notices.flush(turn.room)

    def lost(self, peer: str, now_ns: int) -> list[Send]:
        """Drop everything for a client that is gone, and have the scheduler do the same."""
        self._drop(peer)
        return []

    def drain(self) -> None:
        """Do nothing: the scheduler begins nothing new, and what has begun is finished."""

    @property
    def is_idle(self) -> bool:
        """Whether every sequence is over, and all text was sent to whoever reads it."""
        is_sent = all(outbox.is_given_up for outbox in self._outboxes.values())
        return is_sent and self._notices.is_empty and not self._live

    def check(self) -> None:
        """Assert the invariants."""
        for client, outbox in self._outboxes.items():
            outbox.check()
            assert outbox.live or not outbox.is_empty, f"nothing waits for {client}"
            for sequence in outbox.live:
                assert self._live[sequence].client == client
        listed = sum(len(outbox.live) for outbox in self._outboxes.values())
        assert listed == len(self._live), f"{listed} live in outboxes, {len(self._live)} in all"

    def _begin(self, begin: Begin) -> None:
        vocabulary = self._vocabularies.of(begin.added_tokens)
        stops = [StopString(stop) for stop in begin.stop]
        for sequence in range(begin.first_sequence, begin.first_sequence + begin.choices):
            assert sequence not in self._live, f"sequence {sequence} begins twice"
            stream = vocabulary.stream(skip_special_tokens=begin.skip_special_tokens)
            scanner = StopScanner(stops, include_stop=begin.include_stop)
            text = SequenceText(vocabulary, stream, scanner)
            self._live[sequence] = _Live(begin.client, text)
        self._outbox(begin.client).accept(
            Accepted(
                begin.label,
                begin.request_id,
                begin.first_sequence,
                begin.choices,
                begin.prompt_tokens,
            )
        )

    def _take(self, scheduler: str, sampled: Sampled) -> None:
        logprobs = {entry.index: entry for entry in sampled.logprobs}
        ends = {end.sequence: end for end in sampled.ends}
        for index, (sequence, token) in enumerate(
            zip(sampled.sequences, sampled.tokens, strict=True)
        ):
            live = self._live.get(sequence)
            if live is None or live.text.is_stopped:
                continue  # dropped, or sampled before the scheduler heard of the stop
            end = ends.get(sequence)
            if end is not None and end.reason == "stop":
                # The scheduler saw a token that ends the sequence; it is no part of the text.
                live.text.feed_hidden()
                continue
            piece = live.text.feed(token, logprobs.get(index))
            self._outboxes[live.client].add(sequence, piece)
            if live.text.is_stopped and end is None:
                self._stops_found_count += 1
                self._notices.stop(scheduler, StopFound(sequence, live.text.output_tokens))
        for end in sampled.ends:
            self._end(end)

    def _end(self, end: End) -> None:
        live = self._live.pop(end.sequence, None)
        if live is None:
            return
        outbox = self._outboxes[live.client]
        outbox.add(end.sequence, live.text.finish())
        if live.text.is_stopped:
            # Whatever else ended it before the scheduler heard of the stop string: that came first.
            output_tokens = live.text.output_tokens
            end = structs.replace(end, reason="stop", output_tokens=output_tokens, error=None)
        outbox.end(end)

    def _flush(self, client: str, turn: Turn) -> list[Send]:
        outbox = self._outboxes[client]
        sends: list[Send] = []
        room = turn.room(client)
        while room > len(sends) and not outbox.is_empty:
            sends.append(Send(client, outbox.take()))
        if sends or outbox.is_empty:
            outbox.stalled_since_ns = None
        elif outbox.stalled_since_ns is None:
            outbox.stalled_since_ns = turn.now_ns
        elif not outbox.is_given_up and turn.now_ns - outbox.stalled_since_ns > STALLED_MAX_NS:
            self._give_up(client, outbox)
        if outbox.is_empty and not outbox.live:
            del self._outboxes[client]
        return sends

    def _give_up(self, client: str, outbox: Outbox) -> None:
        """End what a client that reads nothing waits for. If it ever reads again, it is told."""
        self._clients_stalled_count += 1
        if outbox.live:
            self._notices.gone(client)
        outbox.give_up(
            [
                End(
                    sequence, "error", self._live.pop(sequence).text.output_tokens, 0, STALLED_ERROR
                )
                for sequence in sorted(outbox.live)
            ]
        )

    def _drop(self, client: str) -> None:
        outbox = self._outboxes.pop(client, None)
        if outbox is not None:
            for sequence in outbox.live:
                del self._live[sequence]
        self._notices.gone(client)

    def _outbox(self, client: str) -> Outbox:
        return self._outboxes.setdefault(client, Outbox())

    def _counters(self) -> dict[str, float]:
        return {
            "sequences": len(self._live),
            "clients": len(self._outboxes),
            "characters_unsent": sum(outbox.characters for outbox in self._outboxes.values()),
            "stops_found_total": self._stops_found_count,
            "clients_stalled_total": self._clients_stalled_count,
        }
