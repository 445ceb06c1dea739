"""A deterministic model for the simulator: its next token is a hash of what its KV pages hold.

It keeps, in each position of each page, the adapter and the token whose KV was "written" there, or
which part of which adapter's weights lies there. So a page that was given to someone else too
early, shared with the wrong adapter, or resumed at the wrong position changes the output at once.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from weft.actors.runner.engine import Done
from weft.runtime.histogram import Histogram
from weft.runtime.messages import (
    LOAD_BUCKETS_S,
    AdapterLoad,
    Join,
    RunnerReady,
    Step,
    StepDone,
    TokenLogprobs,
)

VOCABULARY = 1000
EOS = 2


# With this seed the logits are not finite after every so many tokens.
FAILING_SEED = 13
FAILING_TOKENS = 11


def is_failing(context_tokens: int, *, seed: int) -> bool:
    """Whether the model's output after a context of this length means nothing."""
    return seed == FAILING_SEED and context_tokens % FAILING_TOKENS == 0


def logprobs_of(token: int, count: int, *, index: int, vocabulary: int) -> TokenLogprobs:
    """What stands for the log probabilities of a token and ``count`` likely ones."""
    top = [(token + rank) % vocabulary for rank in range(count)]
    return TokenLogprobs(index, -token / 8, top, [-rival / 8 for rival in top])


# One adapter's digest, several with their scales, or the base; and from where on, unless that is 0.
Adapters = str | tuple | None


def computed_by(uses: Iterable[tuple[str, float]], start: int = 0) -> Adapters:
    """What ``next_token`` takes for adapters with scales, in their order."""
    match tuple(uses):
        case ():
            return None
        case ((digest, 1.0),) if start == 0:
            return digest
        case several:
            return (start, *several) if start else several


def next_token(
    adapter: Adapters,
    context: list[int],
    *,
    seed: int,
    choice: int,
    vocabulary: int = VOCABULARY,
) -> int:
    """The model's definition: every test computes what it expects with it."""
    text = f"{adapter} {context} {seed} {choice}".encode()
    value = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return value % vocabulary


def generate(adapter, prompt, *, max_tokens, seed=0, choice=0, stop=(EOS,), vocabulary=VOCABULARY):
    """All output tokens of one sequence, the one that stops it included."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(next_token(adapter, tokens, seed=seed, choice=choice, vocabulary=vocabulary))
        if tokens[-1] in stop:
            break
    return tokens[len(prompt) :]


@dataclass
class Row:
    join: Join
    pages: list[int]
    position: int
    last_token: int | None = None
    history: list[int] = field(default_factory=list)


class FakeEngine:
    """Executes steps as messages.Step defines them, and asserts everything they promise."""

    def __init__(
        self,
        *,
        pages: int,
        page_tokens: int,
        slots: int,
        rows: int,
        page_granules: int = 2,
        vocabulary: int = VOCABULARY,
        rank: int = 0,
        copy_steps: int = 0,
    ) -> None:
        """``copy_steps``: while so many steps are computed an adapter is copied, after its own."""
        self._vocabulary = vocabulary
        self._ready = RunnerReady(rank, pages, page_tokens, slots, page_granules)
        # Of each page: who wrote which token where, or which part of which adapter.
        self._pages = [[None] * page_tokens for _ in range(pages)]
        self._slots: list[AdapterLoad | None] = [None] * slots
        self._copy_steps = copy_steps
        self._copying: dict[int, int] = {}  # by slot: steps that are left
        self._rows: dict[int, Row] = {}
        self._rows_max = rows
        self._next_step = None  # of the first step any: there were others before this life
        self.distinct_adapters_max = 0
        self.row_adapters_max = 0

    def ready(self) -> RunnerReady:
        return self._ready

    def launch(self, step: Step) -> Done:
        return Done(self.execute(step))

    def execute(self, step: Step) -> StepDone:
        assert self._next_step in (None, step.step)
        self._next_step = step.step + 1
        for load in step.loads:
            assert len(set(load.pages)) == len(load.pages) > 0
            self._slots[load.slot] = load
            self._copying[load.slot] = self._copy_steps + 1
            for part, page in enumerate(load.pages):
                self._pages[page] = (load.digest, part)
        for row in step.leaves:
            del self._rows[row]
        for join in step.joins:
            assert 0 <= join.row < self._rows_max
            assert join.row not in self._rows
            self._rows[join.row] = Row(join, list(join.pages), join.position)
        for row, page in zip(step.page_rows, step.page_ids, strict=True):
            self._rows[row].pages.append(page)
        decoding = [row for row, state in self._rows.items() if state.last_token is not None]
        sampling = decoding + [chunk.row for chunk in step.chunks if chunk.is_last]
        feeds = [(row, [self._rows[row].last_token]) for row in decoding]
        for chunk in step.chunks:
            assert chunk.tokens
            assert self._rows[chunk.row].position == chunk.position
            assert self._rows[chunk.row].last_token is None
            feeds.append((chunk.row, chunk.tokens))
        for row, tokens in feeds:  # every write of a step comes before its reads
            self._write(self._rows[row], tokens)
        sampled = [self._rows[row] for row in sorted(sampling)]
        tokens = [self._sample(row) for row in sampled]
        used = {slot for row, _ in feeds for slot, _ in self._rows[row].join.adapters}
        self._copy(used, others=len(feeds) - 1)
        self.distinct_adapters_max = max(self.distinct_adapters_max, len(used))
        of_rows = [len(self._rows[row].join.adapters) for row, _ in feeds]
        self.row_adapters_max = max(self.row_adapters_max, *of_rows, 0)
        failed = [
            index
            for index, row in enumerate(sampled)
            if is_failing(row.position, seed=row.join.sampling.seed)
        ]
        logprobs = [
            logprobs_of(token, count, index=index, vocabulary=self._vocabulary)
            for index, (row, token) in enumerate(zip(sampled, tokens, strict=True))
            if (count := row.join.sampling.logprobs) is not None
        ]
        return StepDone(step.step, tokens, failed, logprobs, loading=sorted(self._copying))

    def _copy(self, used: set[int], others: int) -> None:
        """Go on with copies; who uses one that is not there yet keeps nobody else waiting."""
        waited_for = used & self._copying.keys()
        assert not waited_for or others == 0, f"{others} others wait for slots {waited_for}"
        for slot, steps in list(self._copying.items()):
            if steps == 1 or slot in waited_for:
                del self._copying[slot]
            else:
                self._copying[slot] -= 1

    def counters(self) -> dict[str, float]:
        return {"rows": len(self._rows)}

    @property
    def loads(self) -> Histogram:
        return Histogram(LOAD_BUCKETS_S)

    def _adapters(self, row: Row) -> Adapters:
        """The adapters whose weights lie where the row's slots say."""
        uses = []
        for slot, weight in row.join.adapters:
            load = self._slots[slot]
            assert load is not None, f"slot {slot} names no adapter"
            for part, page in enumerate(load.pages):
                found = self._pages[page]
                assert found == (load.digest, part), f"{found}, not part {part} of {load.digest}"
            uses.append((load.digest, weight))
        return computed_by(uses, row.join.lora_start)

    def _write(self, row: Row, tokens: list[int]) -> None:
        size = self._ready.page_tokens
        adapter = self._adapters(row)
        for token in tokens:
            page = row.pages[row.position // size]
            if isinstance(self._pages[page], tuple):
                self._pages[page] = [None] * size
            owner = adapter if row.position >= row.join.lora_start else None
            self._pages[page][row.position % size] = (owner, token)
            row.position += 1

    def _sample(self, row: Row) -> int:
        size = self._ready.page_tokens
        adapter = self._adapters(row)
        context = []
        for position in range(row.position):
            written = self._pages[row.pages[position // size]][position % size]
            assert written is not None, "KV is read that nobody has written"
            owner, token = written
            wanted = adapter if position >= row.join.lora_start else None
            assert owner == wanted, f"KV of {owner} read by {adapter} at {position}"
            context.append(token)
        if row.join.history is not None:
            row.history = row.history or list(row.join.history)
            assert context == row.history
        sampling = row.join.sampling
        row.last_token = next_token(
            adapter,
            context,
            seed=sampling.seed,
            choice=row.join.choice,
            vocabulary=self._vocabulary,
        )
        if row.join.history is not None:
            row.history.append(row.last_token)
        return row.last_token
