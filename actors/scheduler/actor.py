"""The scheduler actor: owner of every request from acceptance to its last end.

Requests come in from the tokenizer, steps go out to the runners, one ahead of the one that is being
computed; each answer becomes one ``Sampled`` for the detokenizer.
"""

from __future__ import annotations

import logging
from collections.abc import Set
from typing import assert_never

import msgspec

from weft.actors.scheduler.accounts import Payers
from weft.actors.scheduler.answers import completed
from weft.actors.scheduler.chronicle import Chronicle
from weft.actors.scheduler.composer import Composer
from weft.actors.scheduler.draft import Composed
from weft.actors.scheduler.flight import STEPS_IN_FLIGHT, InFlight
from weft.actors.scheduler.group import Runners
from weft.actors.scheduler.host import HostPins
from weft.actors.scheduler.metrics import Metrics, summed
from weft.actors.scheduler.outbox import Outbox
from weft.actors.scheduler.policy import NeverFits
from weft.actors.scheduler.requests import Requests
from weft.actors.scheduler.sequence import Request, Sequence
from weft.actors.scheduler.suspects import DEATHS_MAX, Suspects
from weft.actors.scheduler.visits import Visits
from weft.actors.scheduler.waiting import Waiting
from weft.runtime.actor import Send, Turn
from weft.runtime.config import ANY_OTHER, Config
from weft.runtime.messages import (
    Abort,
    Acquired,
    AcquireFailed,
    AdapterReply,
    Away,
    CatalogSeen,
    ClientGone,
    FinishReason,
    Generate,
    Inspection,
    KeepOnDevice,
    Reject,
    Retire,
    Retired,
    RunnerReady,
    SchedulerInbox,
    StepDone,
    StopFound,
    TokenLogprobs,
)
from weft.runtime.replicas import ALONE, Replica

# What is said of requests meanwhile.
AWAY_REASON = "the model's processes are being started again; requests are taken, and wait"

log = logging.getLogger("weft.scheduler")


class Scheduler:
    """Reacts to messages, and sends a step whenever one may be sent.

    ``runners`` are one model's, by rank: each gets every step, and the first one answers. They live
    and die together. Everything on their devices is then forgotten, and computed again by the next.
    Of several replicas each has a scheduler; a router chooses whose a request is, and hears of it.

    Invariants, checked by ``check``: a sequence has a row if it lives and runs; without runners all
    wait; and those of what the parts own.
    """

    def __init__(self, config: Config, *, runners: list[str], replica: Replica = ALONE) -> None:
        self._config = config
        self._replica = replica
        self._runners = Runners(runners)
        self._composer: Composer | None = None  # while every runner is ready
        self._waiting = Waiting(config.scheduling_policy)
        held_max = min(config.max_loaded_loras, config.max_cpu_loras or config.max_loaded_loras)
        self._host = HostPins(held_max, config.host_memory_bytes)
        self._suspects = Suspects()
        self._lives_lost = 0  # of the runners
        self._visits = Visits(runners)
        self._staying: list[str] = []  # adapters that are to stay on the device
        self._retiring: dict[str, int] = {}  # adapters without a name: catalog version
        self._payers = Payers(config)
        self._requests = Requests(
            queued_max=config.max_queued_requests, payers=self._payers, replica=replica
        )
        self._in_flight = InFlight()
        self._outbox = Outbox(replica)
        self._metrics = Metrics(name for name in config.tenants if name != ANY_OTHER)
        self._chronicle = Chronicle(self._outbox, self._metrics, replica)

    @property
    def is_idle(self) -> bool:
        """Whether no request is left and everybody has been told."""
        is_over = not (self._requests or self._in_flight or self._retiring)
        return is_over and self._outbox.is_empty

    def drain(self) -> None:
        """Do nothing: the tokenizer stops first, and what it let in on its way out is served.

        A rejection could reach nobody any more.
        """

    def lost(self, peer: str, now_ns: int) -> list[Send]:
        """Hear that a runner's former life is over, and with it the whole group's.

        Its last words came before, if at all. Clients are the detokenizer's to watch.
        """
        is_over = self._runners.lost(peer)
        return self._lose_runners() if is_over and self._composer is not None else []

    def receive(self, source: str, message: SchedulerInbox, now_ns: int) -> list[Send]:
        """Take in one message."""
        match message:
            case Generate():
                return self._accept(message, now_ns)
            case StepDone():
                assert source == self._runners.roles[0], f"{source} answers; only rank 0 does"
                if self._composer is None:
                    return []  # it still answered when another of its life was gone already
                return self._finish_step(message, now_ns)
            case StopFound(number, output_tokens):
                sequence = self._requests.sequence(number)
                if sequence is not None:
                    self._end(sequence, "stop", output_tokens=output_tokens)
                return []
            case Abort(client, label):
                request = self._requests.find(client, label)
                self._cancel([request] if request else [])
                return []
            case ClientGone(client):
                self._cancel([r for r in self._requests if r.generate.client == client])
                return []
            case CatalogSeen():
                return [Send("adapters", message)]  # behind it, all older requests are here
            case KeepOnDevice(digests):
                self._staying = digests
                if self._composer is not None:
                    self._composer.slots.stay(digests)
                return []
            case Retire(digest, version):
                self._retiring[digest] = version
                return []
            case AdapterReply():
                known = completed(
                    message,
                    resident=self._resident,
                    requests=self._requests,
                    metrics=self._metrics,
                )
                return [Send(self._replica.door, known)]
            case Acquired():
                self._note_adapter(message)
                return []
            case AcquireFailed(digest, reason):
                self._lose_adapter(digest, reason)
                return []
            case RunnerReady():
                return self._take_runner(source, message)
            case Inspection():
                return self._inspect(source, message)
            case _:
                assert_never(message)

    def advance(self, turn: Turn) -> list[Send]:
        """Tell the detokenizer what is due, and send the next step if the runners can take it."""
        room = turn.room("detokenizer")
        sends = self._outbox.flush(room)
        self._suspects.clear()
        if self._composer is None:
            released = self._host.release(self._waiting.adapters, self._in_flight.sent)
            sends += [Send("adapters", message) for message in released]
        elif room - len(sends) >= STEPS_IN_FLIGHT:
            sends += self._send_step(self._composer, turn)
        return sends + self._retire() + self._tell_progress(turn)

    def check(self) -> None:
        """Assert the invariants of everything that a request can hold."""
        self._requests.check()
        self._waiting.check()
        self._host.check()
        self._suspects.check()
        running = sum(1 for s in self._requests.sequences if s.row is not None)
        if self._composer is not None:
            self._composer.check()
            assert running == len(self._composer.rows)
        else:
            assert running == 0
            assert all(self._waiting.has(s.number) for s in self._requests.sequences)
            assert not self._in_flight
            assert not len(self._visits)

    # ---- requests -------------------------------------------------------------------------------

    def _accept(self, generate: Generate, now_ns: int) -> list[Send]:
        room = self._waiting.room_for(generate.tenant, self._config.max_queued_requests)
        refused = self._requests.refusal(generate, now_ns, room=room)
        if refused is not None:
            self._chronicle.rejected(generate, refused)
            reject = Reject(generate.client, refused, generate.request_id)
            return [Send(self._replica.door, reject)]
        request = self._requests.add(generate, now_ns)
        if request.adapters:
            # Whether they lie in host memory is heard once they have been asked for.
            is_there = self._resident >= {*request.adapters}
            request.tier = "device" if is_there else "host"
        self._chronicle.accepted(request, requests=len(self._requests))
        for sequence in request.sequences:
            self._waiting.append(sequence)
            self._limit(sequence)
        return []

    def _limit(self, sequence: Sequence) -> None:
        """Bound a sequence's output by what fits when it runs alone, or end it if nothing does.

        That is known once there are runners. The next ones may have less memory than the last.
        """
        if self._composer is None:
            return
        try:
            room = self._composer.output_max(sequence)
        except NeverFits as error:
            self._end(sequence, "error", error=str(error))
            return
        sequence.output_max = min(sequence.output_max, room)
        if sequence.output_tokens >= sequence.output_max:
            self._end(sequence, "length")

    def _note_adapter(self, acquired: Acquired) -> None:
        self._host.arrived(acquired)
        for sequence in list(self._waiting.all_of(acquired.digest)):
            if acquired.was_read and sequence.request.tier == "host":
                sequence.request.tier = "disk"
            sequence.request.granules[acquired.digest] = acquired.granules
            self._limit(sequence)

    def _cancel(self, requests: list[Request]) -> None:
        for request in requests:
            for sequence in request.sequences:
                if not sequence.is_over:
                    self._end(sequence, "cancelled")

    def _lose_adapter(self, digest: str, reason: str) -> None:
        self._host.failed(digest)
        for sequence in list(self._waiting.all_of(digest)):
            self._end(sequence, "error", error=f"the adapter cannot be loaded: {reason}")

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        *,
        output_tokens: int | None = None,
        error: str | None = None,
    ) -> None:
        """Free everything that a live sequence holds, and remember to say that it is over."""
        if self._composer is not None:
            self._composer.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self._requests.end(sequence)
        count = sequence.output_tokens if output_tokens is None else output_tokens
        self._chronicle.ended(sequence, reason, count, error)

    def _tell_progress(self, turn: Turn) -> list[Send]:
        if turn.room(self._replica.door) == 0:
            return []
        progress = self._chronicle.progress(self._composer.slots if self._composer else None)
        return [] if progress is None else [Send(self._replica.door, progress)]

    # ---- runners --------------------------------------------------------------------------------

    def _take_runner(self, source: str, ready: RunnerReady) -> list[Send]:
        """Go on once every runner of one life is ready."""
        together = self._runners.ready(source, ready)
        if together is None:
            return []
        self._composer = composer = Composer(self._config, together, self._waiting, self._host)
        composer.slots.stay(self._staying)
        for sequence in list(self._waiting):
            self._limit(sequence)
        log.info("the runners are ready: %d sequences wait", len(self._waiting))
        return [Send(self._replica.door, Away(None)), Send("adapters", composer.room_to_stay)]

    def _lose_runners(self) -> list[Send]:
        """Forget what the runners' devices held; whoever ran waits again, before all others."""
        composer, self._composer = self._composer, None
        assert composer is not None
        self._lives_lost += 1
        guilty = self._suspects.died(self._in_flight.sequences)
        rows = {sequence: index for index, sequence in enumerate(composer.rows)}
        # Those without a row wait for their last token only, so they were admitted before.
        running = [s for s in self._requests.sequences if not self._waiting.has(s.number)]
        running.sort(key=lambda sequence: rows.get(sequence, -1))
        for sequence in self._requests.sequences:
            sequence.lose_device()
        for sequence in reversed(running):
            self._waiting.prepend(sequence)
            self._chronicle.resumed(sequence)
        self._in_flight.lose()
        if guilty is not None:
            self._give_up(guilty)
        log.warning("the runners are gone: %d sequences wait", len(self._waiting))
        for inspection in self._visits.end():
            self._outbox.inspection(inspection)
        return [Send(self._replica.door, Away(AWAY_REASON))]

    def _give_up(self, request: Request) -> None:
        text = f"the model's processes died {DEATHS_MAX} times while they computed this request "
        text += "and no other; it is not tried again"
        for sequence in request.sequences:
            if not sequence.is_over:
                self._end(sequence, "error", error=text)

    # ---- steps ----------------------------------------------------------------------------------

    def _send_step(self, composer: Composer, turn: Turn) -> list[Send]:
        sends = []
        lacking: list[int] = []
        alone = self._suspects.alone
        composer.let_alone(alone)
        has_way = alone is None or self._in_flight.has_only(alone)
        if not self._in_flight.is_full and has_way:
            composed, lacking = composer.compose(self._in_flight.sent)
            if composed is not None:
                self._in_flight.send(composed)
                self._note_admissions(composed, turn.now_ns)
                sends += [Send(runner, composed.step) for runner in self._runners.roles]
        messages = composer.host_messages(lacking, self._in_flight.first)
        return sends + [Send("adapters", message) for message in messages]

    def _note_admissions(self, composed: Composed, now_ns: int) -> None:
        for sequence in composed.admitted:
            if sequence.first_step is None:
                sequence.first_step = composed.step.step
            self._chronicle.admitted(sequence, composed.step.step, now_ns)

    def _finish_step(self, done: StepDone, now_ns: int) -> list[Send]:
        composed = self._in_flight.finish(done)
        assert self._composer is not None
        self._composer.slots.copied(done.step, done.loading)
        failed = frozenset(done.failed)
        logprobs = {item.index: item for item in done.logprobs}
        numbers: list[int] = []
        tokens: list[int] = []
        kept: list[TokenLogprobs] = []
        for index, (sequence, token) in enumerate(zip(composed.sampled, done.tokens, strict=True)):
            sequence.in_flight -= 1
            sequence.last_step = done.step
            if sequence.is_over:
                continue  # cancelled, or ended by the token before this one
            if index in failed:
                sequence.computed = 0  # nothing of it may stay in the prefix cache
                self._end(sequence, "error", error="the model's output was not a finite number")
                continue
            if self._take_token(sequence, token, now_ns):
                if index in logprobs:
                    item = logprobs[index]
                    kept.append(TokenLogprobs(len(numbers), item.chosen, item.top_tokens, item.top))
                numbers.append(sequence.number)
                tokens.append(token)
        self._share_prompts(composed)
        return self._outbox.step(numbers, tokens, kept)

    def _take_token(self, sequence: Sequence, token: int, now_ns: int) -> bool:
        """Append a sampled token and end the sequence if it is the last: is it to be shown?"""
        request = sequence.request
        generate = request.generate
        sequence.tokens.append(token)
        tenant = request.tenant
        tenant.counter += tenant.output_price
        for account in request.metered:
            account.spend(1, now_ns)
        self._chronicle.token(request, now_ns)
        if token in generate.stop_token_ids:
            self._end(sequence, "stop")
            return False
        if sequence.output_tokens >= sequence.output_max:
            self._end(sequence, "length")
        return True

    def _share_prompts(self, composed: Composed) -> None:
        assert self._composer is not None
        for sequence, computed in composed.computed:
            if sequence.holding is not None and sequence.row is not None:
                known = min(computed, sequence.computed)
                self._composer.cache.share(sequence.holding, sequence.tokens, known)

    # ---- adapters -------------------------------------------------------------------------------

    def _retire(self) -> list[Send]:
        """Forget what has no name and no request any more, and tell the store."""
        if not self._retiring:
            return []
        used = {adapter for request in self._requests for adapter in request.adapters}
        sends = []
        for digest, version in list(self._retiring.items()):
            if digest in used or not self._forget(digest):
                continue
            del self._retiring[digest]
            self._metrics.forget(digest)
            sends.append(Send("adapters", Retired(digest, version)))
        return sends

    def _forget(self, digest: str) -> bool:
        if self._composer is None:
            return not self._host.has(digest)
        return self._composer.forget(digest)

    @property
    def _resident(self) -> Set[str]:
        """Adapters on the device."""
        return self._composer.slots.resident if self._composer else frozenset()

    # ---- inspection -----------------------------------------------------------------------------

    def _inspect(self, source: str, inspection: Inspection) -> list[Send]:
        if source in self._runners.roles:
            if not self._visits.knows(inspection):
                return []  # it went on when its runners were lost
            return self._pass_on(inspection, self._visits.back(source, inspection))
        self.check()
        sections = {**inspection.sections, self._replica.scheduler: self._counters()}
        metrics = self._metrics.report(self._resident, self._requests)
        tenants = self._metrics.report_tenants(self._payers.tenants.counter)
        forward = msgspec.structs.replace(
            inspection,
            sections=sections,
            adapters=summed(inspection.adapters, metrics),
            tenants=summed(inspection.tenants, tenants),
        )
        return self._pass_on(forward, self._visits.begin(forward) if self._composer else None)

    def _pass_on(self, inspection: Inspection, runner: str | None) -> list[Send]:
        if runner is not None:
            return [Send(runner, inspection)]
        self._outbox.inspection(inspection)
        return []

    def _counters(self) -> dict[str, float]:
        counters: dict[str, float] = {
            "requests": len(self._requests),
            "sequences": self._requests.sequence_count,
            "rejected_total": self._metrics.rejections,
            "tenants": len(self._payers.tenants),
            **self._in_flight.counters(),
            "runners_ready": 0 if self._composer is None else len(self._runners.roles),
            "runners_lost_total": self._lives_lost,
            "requests_in_doubt": len(self._suspects),
            "waiting": len(self._waiting),
            "adapters_held": len(self._host),
        }
        return counters | (self._composer.counters() if self._composer else {})
