"""What becomes of requests, told to everyone who is to know: clients, metrics, router and log."""

from __future__ import annotations

import logging

from weft.actors.scheduler.metrics import Metrics
from weft.actors.scheduler.outbox import Outbox
from weft.actors.scheduler.progress import ProgressNotes
from weft.actors.scheduler.sequence import Request, Sequence
from weft.actors.scheduler.slots import AdapterSlots
from weft.runtime.messages import Begin, End, FinishReason, Generate, Progress, Refused, Resume
from weft.runtime.replicas import Replica

log = logging.getLogger("weft.scheduler")


class Chronicle:
    """Hears of each event once, when it has happened. It decides nothing."""

    def __init__(self, outbox: Outbox, metrics: Metrics, replica: Replica) -> None:
        self._outbox = outbox
        self._metrics = metrics
        self._first_number = replica.first_number
        self._notes = ProgressNotes() if replica.count > 1 else None  # for the router

    def rejected(self, generate: Generate, refused: Refused) -> None:
        """A request is not taken."""
        # Who is told in the end, and who gets room elsewhere, is the router's to count.
        self._metrics.rejected(generate if self._notes is None else None)
        log.info("rejected: %s", refused.code, extra={"request": generate.request_id})

    def accepted(self, request: Request, *, requests: int) -> None:
        """A request will be answered; there are so many now."""
        generate = request.generate
        if self._notes is not None:
            self._notes.accepted.append(generate.request_id)
        self._metrics.accepted(request)
        log.info(
            "accepted: %d prompt tokens, %d choices, model %s, %d requests",
            len(generate.prompt), generate.choices, generate.model, requests,
            extra={"request": generate.request_id},
        )  # fmt: skip
        self._outbox.begin(
            Begin(
                first_sequence=request.sequences[0].number,
                choices=generate.choices,
                request_id=generate.request_id,
                client=generate.client,
                label=generate.label,
                model=generate.model,
                prompt_tokens=len(generate.prompt),
                stop=generate.stop,
                include_stop=generate.include_stop,
                skip_special_tokens=generate.skip_special_tokens,
                added_tokens=generate.added_tokens,
            )
        )

    def admitted(self, sequence: Sequence, step: int, now_ns: int) -> None:
        """A sequence has got a row, be it once more."""
        request = sequence.request
        if request.admitted_ns is None:
            self._metrics.admitted(request, now_ns)
        log.debug(
            "admitted: choice %d in step %d, row %d, %d tokens cached, queued %.1f ms",
            sequence.choice, step, sequence.row, sequence.cached_tokens,
            (now_ns - request.accepted_ns) / 1e6,
            extra={"request": request.generate.request_id},
        )  # fmt: skip

    def resumed(self, sequence: Sequence) -> None:
        """A sequence that ran waits again: its runners are gone."""
        log.info(
            "its runners are gone: choice %d goes on after %d output tokens",
            sequence.choice, sequence.output_tokens,
            extra={"request": sequence.request.generate.request_id},
        )  # fmt: skip

    def left(self, request: Request) -> None:
        """A request is another replica's from now on."""
        log.info("goes to another replica", extra={"request": request.generate.request_id})

    def came(self, request: Request) -> None:
        """A request that was another replica's, and counted there, goes on here."""
        assert self._notes is not None, "there is no other replica"
        self._notes.accepted.append(request.generate.request_id)
        self._metrics.came(request)
        self._outbox.move(Resume([sequence.number for sequence in request.sequences]))
        log.info(
            "comes from another replica: %d choices", len(request.sequences),
            extra={"request": request.generate.request_id},
        )  # fmt: skip

    def token(self, request: Request, now_ns: int) -> None:
        """A token was sampled."""
        generate = request.generate
        if self._notes is not None and request.metered:
            self._notes.metered.append(generate.request_id)
        if request.first_token_ns is None:
            self._metrics.first_token(request, now_ns)
            log.debug(
                "first token: %.1f ms after acceptance",
                (now_ns - request.accepted_ns) / 1e6,
                extra={"request": generate.request_id},
            )

    def ended(
        self, sequence: Sequence, reason: FinishReason, output_tokens: int, error: str | None
    ) -> None:
        """A sequence is over; its client gets so many of its tokens."""
        request = sequence.request
        if self._notes is not None:
            self._notes.ended.append(request.generate.request_id)
        end = End(
            sequence.number,
            reason,
            output_tokens,
            sequence.cached_tokens or 0,
            error,
            self._shown(sequence.first_step),
            self._shown(sequence.last_step),
        )
        self._outbox.end(end)
        self._metrics.ended(request, end)
        log.info(
            "ended: %s, choice %d, %d output tokens, %d of %d prompt tokens cached, %s%s",
            reason, sequence.choice, output_tokens, end.cached_tokens, len(request.generate.prompt),
            request.waits, f", {error}" if error else "",
            extra={"request": request.generate.request_id},
        )  # fmt: skip

    def progress(self, slots: AdapterSlots | None) -> Progress | None:
        """Return what the router is to be told, if there is one, and anything to tell."""
        return None if self._notes is None else self._notes.take(slots)

    def _shown(self, step: int | None) -> int | None:
        """Return a step's number as clients see it: unlike that of any other replica's step."""
        return None if step is None else self._first_number + step
