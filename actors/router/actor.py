"""The router: of several schedulers, the one that gets a request."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict, deque
from typing import NamedTuple, assert_never

import msgspec

from weft.actors.router.balance import choose
from weft.actors.router.ledger import Ledger, Routed, Wants, wants_of
from weft.actors.router.moves import PATIENCE_NS, to_rescue, to_share
from weft.actors.scheduler.accounts import Payers, metered
from weft.actors.scheduler.metrics import Metrics, summed
from weft.runtime.actor import Send, Turn
from weft.runtime.config import ANY_OTHER, Config
from weft.runtime.messages import (
    Abort,
    AdapterReply,
    Away,
    CatalogSeen,
    Generate,
    HandOver,
    Inspection,
    Progress,
    Refused,
    Reject,
    RouterInbox,
    Settled,
    Yield,
    Yielded,
)
from weft.runtime.replicas import schedulers

log = logging.getLogger("weft.router")


class _Catalog(NamedTuple):
    """A catalog by which the tokenizer resolves names, and which requests came before it."""

    version: int
    routed: int


class Router:
    """Stands between the tokenizer and the schedulers: to the one a scheduler, to them a tokenizer.

    Limits of tenants and adapters hold over all replicas, so they are held against requests here;
    turns are taken in each scheduler. A request that finds a full queue is sent to another replica
    before its client hears of it. So a catalog that the tokenizer has seen goes on to the store
    only once every request from before has been accepted or refused: none is on its way any more.

    A replica that loses its runners is asked for its requests, which others go on with; one that
    gets them back shares what waits elsewhere. One replica at a time is asked for a few, and the
    next once they have been taken. (What is on its way from one to the other needs no catalog to
    wait: who has handed it over retires nothing that it may need.)

    Nothing waits here for room on a link: a scheduler that does not read jams the links before it.

    Invariants, checked by ``check``: those of the ledger; accounts count what is not over.
    """

    def __init__(self, config: Config) -> None:
        self._method = config.load_balance_method
        self._slack = config.max_num_batched_tokens
        is_aware = self._method == "adapter_aware"
        self._looks_at_prompts = is_aware and config.enable_prefix_caching
        self._schedulers = schedulers(config.data_parallel_size)
        self._index = {role: index for index, role in enumerate(self._schedulers)}
        self._ledger = Ledger(len(self._schedulers))
        self._payers = Payers(config)
        self._metrics = Metrics(name for name in config.tenants if name != ANY_OTHER)
        self._catalogs: deque[_Catalog] = deque()  # that the store has not heard of
        self._sent = [0] * len(self._schedulers)  # requests, to each
        self._moved = 0
        self._handed_over = 0
        self._away: dict[int, int] = {}  # replicas whose runners are not there, and since when
        self._hopeless: set[int] = set()  # those of them that may never have others
        self._asked: int | None = None  # the replica that is to hand requests over
        self._is_uneven = False  # a replica came back, which may have less to do than others
        # What a replica ordinarily has at most: more is not brought there.
        self._choices_max = config.max_queued_requests + config.max_num_seqs

    @property
    def is_idle(self) -> bool:
        """Whether no scheduler has yet to say if it takes a request, or gives one away."""
        is_moving = self._ledger.moving or self._asked is not None
        return not (self._ledger.pending or self._catalogs or is_moving)

    def drain(self) -> None:
        """Do nothing: the tokenizer stops first, and what it let in is passed on."""

    def lost(self, peer: str, now_ns: int) -> list[Send]:
        """Nothing here belongs to one link: clients are the detokenizer's to watch."""
        return []

    def advance(self, turn: Turn) -> list[Send]:
        """Ask those once more for all that they have whose runners do not come back."""
        late = [r for r, since in self._away.items() if turn.now_ns - since >= PATIENCE_NS]
        late = [replica for replica in late if replica not in self._hopeless]
        for replica in late:
            self._hopeless.add(replica)
            self._ledger.note_runners(replica, are_there=False)
        return self._ask() if late else []

    def receive(self, source: str, message: RouterInbox, now_ns: int) -> list[Send]:
        """Take in one message."""
        match message:
            case Generate():
                return self._take(message, now_ns)
            case Abort(client, label):
                return self._abort(message, self._ledger.find(client, label))
            case CatalogSeen(version):
                self._catalogs.append(_Catalog(version, self._ledger.routed))
                return self._pass_catalog()
            case Reject():
                return self._reconsider(message, now_ns)
            case Away(reason):
                return [self._note_away(self._index[source], reason, now_ns), *self._ask()]
            case HandOver():
                return self._hand_over(message)
            case Yielded():
                self._asked = None
                return self._ask()
            case Progress():
                return self._note(self._index[source], message, now_ns)
            case AdapterReply():
                return [Send(self._after(source) or "tokenizer", message)]
            case Inspection():
                following = self._after(source)
                assert following is not None, "the last scheduler tells the detokenizer"
                return [Send(following, self._inspected(message))]
            case _:
                assert_never(message)

    def check(self) -> None:
        """Assert the invariants."""
        self._ledger.check()
        tenants: Counter[str] = Counter()
        adapters: Counter[str] = Counter()
        for routed in self._ledger:
            tenants[routed.tenant.name] += routed.choices
            for adapter in routed.adapters:
                adapters[adapter.name] += routed.choices
        self._payers.tenants.check(tenants)
        self._payers.adapters.check(adapters)

    # ---- requests -------------------------------------------------------------------------------

    def _take(self, generate: Generate, now_ns: int) -> list[Send]:
        refused = self._payers.refusal(generate, now_ns)
        if refused is not None:
            return [self._refuse(generate, refused)]
        wants = wants_of(generate, looks_at_prompt=self._looks_at_prompts)
        same = self._ledger.find(generate.client, generate.label)
        # A label that is in use is refused by who knows whether it still is.
        replica = same[0].replica if same else self._choose(wants, set(), self._ledger.routed)
        self._ledger.add(generate, wants, replica, *self._payers.take(generate, now_ns))
        return [self._send(generate, replica)]

    def _abort(self, abort: Abort, requests: list[Routed]) -> list[Send]:
        for routed in requests:
            routed.is_cancelled = True
        replicas = dict.fromkeys(routed.replica for routed in requests)
        return [Send(self._schedulers[replica], abort) for replica in replicas]

    def _reconsider(self, reject: Reject, now_ns: int) -> list[Send]:
        """Send what was rejected for a full queue to another replica, or tell the client."""
        routed = self._ledger.get(reject.request_id)
        generate = routed.pending
        assert generate is not None, f"{reject.request_id} was accepted"
        routed.full.add(routed.replica)
        is_elsewhere = len(routed.full) < len(self._schedulers)
        if reject.refused.code == "queue_full" and is_elsewhere and not routed.is_cancelled:
            self._moved += 1
            self._ledger.move(routed, self._choose(routed.wants, routed.full, self._ledger.routed))
            return [self._send(generate, routed.replica)]
        self._ledger.remove(routed)
        for _ in range(routed.choices):
            self._payers.give_back(routed.tenant, routed.adapters)
        for account in metered(routed.tenant, routed.adapters):
            account.spend(-len(generate.prompt), now_ns)
        return [self._refuse(generate, reject.refused), *self._pass_catalog()]

    def _choose(self, wants: Wants, excluded: set[int], turn: int) -> int:
        allowed = set(self._index.values()) - excluded
        return choose(
            self._method,
            self._ledger.loads(wants),
            allowed - self._away.keys()
            or allowed,  # where it would wait only if it would everywhere
            turn=turn,
            slack=self._slack,
        )

    def _send(self, generate: Generate, replica: int) -> Send:
        self._sent[replica] += 1
        log.debug("to replica %d", replica, extra={"request": generate.request_id})
        return Send(self._schedulers[replica], generate)

    def _refuse(self, generate: Generate, refused: Refused) -> Send:
        self._metrics.rejected(generate)
        log.info("rejected: %s", refused.code, extra={"request": generate.request_id})
        return Send("tokenizer", Reject(generate.client, refused, generate.request_id))

    def _note(self, replica: int, progress: Progress, now_ns: int) -> list[Send]:
        for request_id in progress.accepted:
            self._ledger.accept(request_id)
        for request_id in progress.metered:
            routed = self._ledger.get(request_id)
            for account in metered(routed.tenant, routed.adapters):
                account.spend(1, now_ns)
        settled: defaultdict[int, list[str]] = defaultdict(list)
        for request_id in progress.ended:
            routed = self._ledger.end_choice(request_id)
            self._payers.give_back(routed.tenant, routed.adapters)
            if routed.choices == 0:
                for former in routed.former:
                    settled[former].append(request_id)
        self._ledger.note_device(replica, progress.loaded, progress.evicted)
        sends = [Send(self._schedulers[former], Settled(ids)) for former, ids in settled.items()]
        return [*sends, *self._pass_catalog(), *self._ask()]

    # ---- replicas without runners ---------------------------------------------------------------

    @property
    def _there(self) -> set[int]:
        """Replicas that have runners."""
        return set(self._index.values()) - self._away.keys()

    def _note_away(self, replica: int, reason: str | None, now_ns: int) -> Send:
        """Send requests elsewhere, if one replica is there; if none is, the tokenizer must know."""
        if reason is None:
            self._away.pop(replica, None)
            self._is_uneven = True
        else:
            self._away[replica] = now_ns
        self._hopeless.discard(replica)
        self._ledger.note_runners(replica, are_there=reason is None)
        count, away = len(self._schedulers), len(self._away)
        if away == count:
            return Send("tokenizer", Away(reason))
        text = f"{away} of {count} replicas are without their processes; the others serve"
        return Send("tokenizer", Away(None, text if away else None))

    def _ask(self) -> list[Send]:
        """Ask a replica for requests that are better off elsewhere, unless some are on their way.

        The next is asked once these have been taken.
        """
        there = self._there
        if not there or self._asked is not None or self._ledger.moving:
            return []
        for replica in sorted(self._away):
            room = sum(max(0, self._choices_max - self._ledger.choices(other)) for other in there)
            if self._ledger.choices(replica):
                chosen = to_rescue(self._ledger.of(replica), room)
                if chosen:
                    return [self._ask_for(replica, chosen)]
        while self._is_uneven:
            tokens = {replica: self._ledger.tokens(replica) for replica in sorted(there)}
            most = max(tokens, key=tokens.__getitem__)
            requests = list(self._ledger.of(most))
            chosen = to_share(requests, tokens[most], min(tokens.values()), self._slack)
            if chosen:
                return [self._ask_for(most, chosen)]
            self._is_uneven = False
        return []

    def _ask_for(self, replica: int, request_ids: list[str]) -> Send:
        self._asked = replica
        for request_id in request_ids:
            self._ledger.get(request_id).stays = True
        asked = Yield(request_ids, with_suspects=replica in self._hopeless)
        return Send(self._schedulers[replica], asked)

    def _hand_over(self, hand_over: HandOver) -> list[Send]:
        """Have another replica go on with a request, or the same one, if no other has runners."""
        generate = hand_over.generate
        routed = self._ledger.get(generate.request_id)
        replica = routed.replica
        if self._there - {replica}:
            replica = self._choose(routed.wants, {replica}, routed.number)
        log.info("to replica %d", replica, extra={"request": generate.request_id})
        self._handed_over += 1
        self._ledger.hand_over(routed, replica)
        sends: list[Send] = [Send(self._schedulers[replica], hand_over)]
        if routed.is_cancelled:  # which its former replica may have heard too late
            abort = Abort(routed.client, routed.label)
            sends.append(Send(self._schedulers[replica], abort))
        return sends

    # ---- adapters -------------------------------------------------------------------------------

    def _pass_catalog(self) -> list[Send]:
        """Pass on, by the first scheduler, the newest catalog before which nothing is pending."""
        oldest = self._ledger.oldest_pending
        due = None
        while self._catalogs and (oldest is None or oldest > self._catalogs[0].routed):
            due = self._catalogs.popleft()
        return [] if due is None else [Send(self._schedulers[0], CatalogSeen(due.version))]

    def _after(self, scheduler: str) -> str | None:
        """Return who adds what it knows after this scheduler, if anybody does."""
        following = self._index[scheduler] + 1
        return self._schedulers[following] if following < len(self._schedulers) else None

    # ---- inspection -----------------------------------------------------------------------------

    def _inspected(self, inspection: Inspection) -> Inspection:
        """Return an inspection with this actor's section, which it may have already."""
        if "router" in inspection.sections:
            return inspection
        self.check()
        counters = {
            "requests": len(self._ledger),
            "pending": self._ledger.pending,
            "rejected_total": self._metrics.rejections,
            "moved_total": self._moved,
            "moving": self._ledger.moving,
            "handed_over_total": self._handed_over,
            "replicas_away": len(self._away),
        }
        for replica, sent in enumerate(self._sent):
            counters[f"replica{replica}_requests_total"] = sent
            counters[f"replica{replica}_tokens"] = self._ledger.tokens(replica)
        section = {name: float(value) for name, value in counters.items()}
        tenants = self._metrics.report_tenants(lambda tenant: 0.0)
        return msgspec.structs.replace(
            inspection,
            sections={**inspection.sections, "router": section},
            tenants=summed(inspection.tenants, tenants),
        )
