"""A request while the scheduler owns it, and its choices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from weft.actors.scheduler.accounts import Account, metered
from weft.actors.scheduler.prefixes import Holding, Identity
from weft.runtime.messages import Generate


@dataclass(eq=False, slots=True)
class Sequence:
    """One choice of one request.

    Waiting (no row), running (a row), or over. ``computed`` counts the positions whose KV has been
    ordered; with a step in flight, the tokens of the last ones are not known yet. A running
    sequence is prefilling while ``computed`` has not reached the tokens it joined with.
    """

    number: int
    request: Request
    choice: int
    tokens: list[int]  # prompt and known output
    output_max: int
    computed: int = 0
    prefill_end: int = 0  # length of ``tokens`` when it joined its row
    in_flight: int = 0  # tokens ordered and not yet known
    row: int | None = None
    holding: Holding | None = None
    is_over: bool = False
    cached_tokens: int | None = None  # of the prompt, at first admission
    overtaken: int = 0
    first_step: int | None = None
    last_step: int | None = None

    @property
    def output_tokens(self) -> int:
        """Known tokens that are not prompt."""
        return len(self.tokens) - len(self.request.generate.prompt)

    def lose_device(self) -> None:
        """Forget everything but the tokens that are known: what is computed begins anew."""
        self.computed = self.prefill_end = self.in_flight = 0
        self.row = self.holding = None

    @property
    def is_prefilling(self) -> bool:
        """Whether some of the tokens it joined with have not been ordered yet."""
        return self.computed < self.prefill_end

    @property
    def is_fully_ordered(self) -> bool:
        """Whether no further token may be sampled."""
        return self.output_tokens + self.in_flight >= self.output_max


Tier = Literal["device", "host", "disk"]
TIERS: tuple[Tier, ...] = ("device", "host", "disk")


@dataclass(eq=False, slots=True)
class Request:
    """What a client asked for, from acceptance to the last end of its choices."""

    generate: Generate
    accepted_ns: int
    tenant: Account
    limited: list[Account]  # of its adapters, if adapters are limited
    sequences: list[Sequence] = field(default_factory=list)
    admitted_ns: int | None = None
    first_token_ns: int | None = None
    tier: Tier | None = None  # where its farthest adapter lay when it came; None: it has none
    is_leaving: bool = False  # for another scheduler: it is not computed here any more
    metered: list[Account] = field(init=False)  # who pays for tokens by the minute
    adapters: tuple[str, ...] = field(init=False)  # digests, each once; none: the base
    granules: dict[str, int] = field(default_factory=dict)  # of adapters, once it is known
    identity: Identity = field(init=False)  # of its KV

    def __post_init__(self) -> None:
        self.metered = metered(self.tenant, self.limited)
        self.adapters = tuple(use.digest for use in self.generate.adapters)
        uses = tuple((use.digest, use.scale) for use in self.generate.adapters)
        self.identity = Identity(self.generate.salt, uses, self.generate.lora_start)

    @property
    def key(self) -> tuple[str, str]:
        """What a client cancels by."""
        return (self.generate.client, self.generate.label)

    @property
    def is_over(self) -> bool:
        """Whether every choice has ended."""
        return all(sequence.is_over for sequence in self.sequences)

    @property
    def waits(self) -> str:
        """How long it waited, for the log."""
        if self.admitted_ns is None:
            return "never ran"
        queued = f"queued {(self.admitted_ns - self.accepted_ns) / 1e6:.1f} ms"
        if self.first_token_ns is None:
            return f"{queued}, no token"
        return (
            f"{queued}, first token after {(self.first_token_ns - self.accepted_ns) / 1e6:.1f} ms"
        )

    @property
    def leads(self) -> bool:
        """Whether the first choice here has computed the prompt, so that others can share it."""
        first = self.sequences[0]
        return first.is_over or first.output_tokens > 0


class Rows:
    """The rows of the runners' batch: which sequence has which. Low numbers first."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._sequences: dict[int, Sequence] = {}

    @property
    def free(self) -> int:
        """Rows that nobody has."""
        return len(self._free)

    @property
    def youngest(self) -> Sequence:
        """The running sequence admitted last."""
        return next(reversed(self._sequences.values()))

    def __iter__(self) -> Iterator[Sequence]:
        """Running sequences, the one admitted first first."""
        return iter(self._sequences.values())

    def __len__(self) -> int:
        return len(self._sequences)

    def take(self, sequence: Sequence) -> int:
        """Give a row to a sequence that is not running."""
        assert sequence.row is None
        row = self._free.pop()
        sequence.row = row
        self._sequences[row] = sequence
        return row

    def give_back(self, sequence: Sequence) -> int:
        """Take a running sequence's row away."""
        row = sequence.row
        assert row is not None
        del self._sequences[row]
        self._free.append(row)
        sequence.row = None
        return row

    def check(self) -> None:
        """Assert that every row is free or has exactly one running sequence."""
        assert sorted([*self._free, *self._sequences]) == list(range(self.count))
        for row, sequence in self._sequences.items():
            assert sequence.row == row
            assert sequence.holding is not None
            assert not sequence.is_over
