"""The tokenizer manager: text in, token ids out, and a clear answer for everything else."""

from __future__ import annotations

from collections import deque
from typing import assert_never

from weft.actors.tokenizer import sampling, tenants
from weft.actors.tokenizer.adapter_texts import AdapterTexts
from weft.actors.tokenizer.apart import Asked, Prepared
from weft.actors.tokenizer.assembly import Assembly
from weft.actors.tokenizer.composition import Compositions
from weft.actors.tokenizer.names import Names
from weft.actors.tokenizer.refusal import (
    DRAINING_RETRY_S,
    LABEL_CHARACTERS_MAX,
    QUEUE_FULL_RETRY_S,
    Refusal,
    need_short,
)
from weft.actors.tokenizer.rendering import Renderer
from weft.actors.tokenizer.replies import Replies
from weft.actors.tokenizer.text_model import TextModel
from weft.actors.tokenizer.waiting import Waiting
from weft.runtime.actor import Send, Turn
from weft.runtime.config import Config
from weft.runtime.messages import (
    Abort,
    AdapterOperation,
    AdapterReply,
    AdapterRequest,
    Away,
    Cancel,
    Catalog,
    CatalogSeen,
    Discover,
    Inspect,
    Inspection,
    ListAdapters,
    ListModels,
    LoadAdapter,
    ModelEntry,
    Models,
    PinAdapter,
    PrefetchAdapter,
    Refused,
    Reject,
    Submit,
    TokenizerInbox,
    UnloadAdapter,
)

# Requests encoded between two looks at the inbox. A long prompt takes tens of milliseconds.
SUBMITS_PER_TURN_MAX = 8

# Requests to the store, and aborts, that wait for room on their links; more are refused or dropped.
REQUESTS_MAX = 256
ABORTS_MAX = 65536


class TokenizerManager:
    """Turns requests into ``Generate``, or refuses them.

    Owns nothing that a request's text could not rebuild: an inbox of requests that wait for room,
    and the adapter store's catalog. Submits wait until the first catalog has arrived, and those for
    an adapter that nobody has asked for yet until the store has read it. A chat for an adapter with
    a template of its own goes away to be rendered, and is resolved anew if its name means something
    else by then.
    """

    def __init__(
        self,
        config: Config,
        model: TextModel,
        renderer: Renderer,
        *,
        nonce: int,
        started_s: int,
    ) -> None:
        """``nonce`` is 64 random bits, new for every life; ``started_s`` is unix time."""
        self._texts = AdapterTexts(model)
        self._base = ModelEntry(
            name=config.base_name,
            root=config.model,
            parent=None,
            digest=None,
            rank=None,
            created_s=started_s,
            max_model_len=model.max_model_len,
        )
        self._names = Names(self._base)
        self._compositions = Compositions(self._names, config)
        self._assembly = Assembly(config, nonce=nonce)
        # Where requests go: to the scheduler, or to who chooses one of several.
        self._door = "scheduler" if config.data_parallel_size == 1 else "router"
        self._inbox_max = config.max_queued_requests
        self._refused = 0
        self._has_catalog = False
        self._is_draining = False
        self._away = Away(None)  # whether requests wait, and why
        self._waiting = Waiting(renderer)
        self._aborts: dict[Abort, None] = {}  # a set in order of arrival
        self._requests: deque[Inspection | AdapterRequest | Discover] = deque()  # to the store
        self._seen: CatalogSeen | None = None  # that the scheduler has not been told of
        self._replies = Replies()

    def receive(self, source: str, message: TokenizerInbox, now_ns: int) -> list[Send]:
        """Take in one message; nothing leaves before the next ``advance`` sees room."""
        match message:
            case Submit():
                self._take(source, message)
            case Cancel(label):
                self._cancel(source, label)
            case ListModels(label):
                label = label[:LABEL_CHARACTERS_MAX]
                away, degraded = self._away.reason, self._away.degraded
                self._replies.put(source, Models(label, self._names.entries(), away, degraded))
            case Inspect(label):
                self._inspect(source, label[:LABEL_CHARACTERS_MAX])
            case (
                LoadAdapter() | UnloadAdapter() | PinAdapter() | PrefetchAdapter() | ListAdapters()
            ):
                self._operate(source, message)
            case Catalog(adapters, removed, version, is_last):
                self._names.update(adapters, removed)
                self._seen = CatalogSeen(version)
                self._has_catalog = self._has_catalog or is_last
                self._waiting.unpark(self._names.is_unread)
            case Reject(client, refused):
                self._refuse(client, refused)
            case Away():
                self._away = message
            case AdapterReply(client, answer):
                self._replies.put(client, answer)
            case _:
                assert_never(message)
        return []

    def advance(self, turn: Turn) -> list[Send] | None:
        """Encode what waits, as far as the scheduler has room; None: there is more to do."""
        sends: list[Send] = []
        room = turn.room(self._door)
        # An abort names a request that was generated before it: they leave in this order.
        while self._aborts and len(sends) < room:
            abort = next(iter(self._aborts))
            del self._aborts[abort]
            sends.append(Send(self._door, abort))
        # Behind every request that was resolved by an older catalog, before any by this one.
        if self._seen is not None and len(sends) < room:
            sends.append(Send(self._door, self._seen))
            self._seen = None
        if self._has_catalog:
            for _ in range(SUBMITS_PER_TURN_MAX):
                if len(sends) == room:
                    break
                if (taken := self._waiting.take()) is not None:
                    sends += self._answer(*taken)
        for _ in range(min(len(self._requests), turn.room("adapters"))):
            sends.append(Send("adapters", self._requests.popleft()))
        is_held_up = len(sends) == room
        sends += self._replies.flush(turn.room)
        # What was only given away, to be rendered or read, says nothing.
        is_more = self._has_catalog and self._waiting.has_turns and not is_held_up
        return None if is_more and not sends else sends

    def lost(self, peer: str, now_ns: int) -> list[Send]:
        """Forget a client; the detokenizer hears of it too and tells the scheduler."""
        self._waiting.forget(peer)
        self._replies.forget(peer)
        return []

    def drain(self) -> None:
        """Refuse what arrives from now on; what has arrived is still answered."""
        self._is_draining = True

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits."""
        is_told = not (self._aborts or self._requests or self._seen or len(self._replies))
        return is_told and not len(self._waiting)

    def check(self) -> None:
        """Assert the limits of everything that waits."""
        assert len(self._waiting) <= self._inbox_max
        assert len(self._aborts) <= ABORTS_MAX
        assert all(self._names.is_unread(name) for name in self._waiting.parked)
        self._replies.check()

    def _take(self, client: str, submit: Submit) -> None:
        """Queue a request, after every check that costs nothing and bounds what is queued."""
        try:
            self._check(submit)
        except Refusal as refusal:
            self._refuse(client, refusal.refused(submit.label[:LABEL_CHARACTERS_MAX]))
            return
        self._waiting.put(Asked(client, submit))

    def _check(self, submit: Submit) -> None:
        for param, text in (
            ("label", submit.label),
            ("model", submit.model),
            ("user", submit.user),
            ("tenant", submit.tenant),
            *(("lora", lora.name) for lora in submit.lora or []),
        ):
            need_short(param, text)
        self._need_no_drain()
        if len(self._waiting) == self._inbox_max:
            text = f"{self._inbox_max} requests wait already; try again later"
            raise Refusal("queue_full", text, retry_after_s=QUEUE_FULL_RETRY_S)
        tenants.check_priority(submit.priority)
        self._compositions.check(submit)
        sampling.check(submit.sampling)
        self._texts.base.check_size(submit)

    def _need_no_drain(self) -> None:
        if self._is_draining:
            text = "the server is shutting down; try again later"
            raise Refusal("draining", text, retry_after_s=DRAINING_RETRY_S)

    def _cancel(self, client: str, label: str) -> None:
        if self._waiting.cancel(client, label):
            self._refuse(client, Refused(label, "cancelled", "cancelled before it was accepted"))
            return
        if len(self._aborts) < ABORTS_MAX and len(label) <= LABEL_CHARACTERS_MAX:
            self._aborts[Abort(client, label)] = None

    def _inspect(self, client: str, label: str) -> None:
        self.check()
        if not self._has_room_to_ask(client, label):
            return
        counters = {
            "waiting": len(self._waiting),
            "rendering": self._waiting.rendering,
            "generated_total": self._assembly.count,
            "refused_total": self._refused,
            "replies_unread": len(self._replies),
            "replies_dropped_total": self._replies.dropped,
        }
        sections = {"tokenizer": {name: float(value) for name, value in counters.items()}}
        self._requests.append(Inspection(client, label, sections))

    def _operate(self, client: str, operation: AdapterOperation) -> None:
        """Pass an operation on adapters to the store."""
        texts = [("label", operation.label), ("name", operation.name)]
        if isinstance(operation, LoadAdapter):
            texts += [("source", operation.source), ("digest", operation.digest)]
        try:
            for param, text in texts:
                need_short(param, text)
            self._need_no_drain()
        except Refusal as refusal:
            self._refuse(client, refusal.refused(operation.label[:LABEL_CHARACTERS_MAX]))
            return
        if self._has_room_to_ask(client, operation.label):
            self._requests.append(AdapterRequest(client, operation))

    def _has_room_to_ask(self, client: str, label: str) -> bool:
        """Whether one more request to the store may wait; the client is told if not."""
        if len(self._requests) < REQUESTS_MAX:
            return True
        text = f"{REQUESTS_MAX} inspections and operations wait already; try again later"
        refused = Refused(label, "queue_full", text, retry_after_s=QUEUE_FULL_RETRY_S)
        self._refuse(client, refused)
        return False

    def _refuse(self, client: str, refused: Refused) -> None:
        self._refused += 1
        self._replies.put(client, refused)

    def _answer(self, asked: Asked, prepared: Prepared | None = None) -> list[Send]:
        """Resolve a request, and encode it unless it has to be read or rendered for first.

        ``prepared`` is what has been rendered for it; in vain, if its names mean something else.
        """
        client, submit = asked
        try:
            if (name := self._compositions.unread(submit)) is not None:
                if self._waiting.park(asked, name):
                    self._requests.append(Discover(name))
                return []
            composition = self._compositions.resolve(submit)
            entry = composition.first
            prompts = self._texts.of(entry)
            if prepared is not None and prepared.entry is entry:
                prompt = prompts.encode(submit, prepared.text())
            elif entry is not None and (job := prompts.job(submit)) is not None:
                self._waiting.render(asked, entry, job)
                return []
            else:
                prompt = prompts.encode(submit)
            return [Send(self._door, self._assembly.generate(asked, composition, prompts, prompt))]
        except Refusal as refusal:
            self._refuse(client, refusal.refused(submit.label))
            return []
