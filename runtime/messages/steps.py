"""Scheduler and runners: what is computed, and what came of it."""

from __future__ import annotations

from weft.runtime.messages.base import Message, Part
from weft.runtime.messages.generation import RowSampling


class AdapterLoad(Part, frozen=True):
    """Put the adapter at ``path`` into ``pages``, and let rows find it by ``slot``.

    A slot is an entry of a table, not memory: what it named before is forgotten. Granule g of a
    layer lies in that layer's page ``pages[g // page_granules]``.
    """

    slot: int
    digest: str
    path: str
    pages: list[int]  # the same in every layer


class Join(Part, frozen=True):
    """A sequence takes a free row. Its tokens follow as chunks."""

    row: int
    # Slots and what their updates are multiplied by, in the order in which they are added up.
    adapters: list[tuple[int, float]]
    position: int  # tokens whose KV the pages already hold
    pages: list[int]
    sampling: RowSampling
    choice: int
    prompt_tokens: int  # positions from here on are output: penalties and noise count from it
    history: list[int] | None  # all tokens so far, when sampling needs them
    lora_start: int = 0  # positions before it are the base's


class Chunk(Part, frozen=True):
    """Feed tokens to a row from ``position`` on; the last chunk samples, then the row decodes."""

    row: int
    position: int
    tokens: list[int]
    is_last: bool


class Step(Message, frozen=True):
    """Scheduler to every runner of a group: what changes, then compute.

    Applied in field order: loads, leaves, joins, pages, chunks. Every row that has sampled and
    has not left also decodes: it feeds its own last token at its own next position. So a steady
    decode step carries nothing but its number.
    """

    step: int
    loads: list[AdapterLoad] = []
    leaves: list[int] = []  # rows
    joins: list[Join] = []
    page_rows: list[int] = []  # page_rows[i] gets page_ids[i] appended to its page table
    page_ids: list[int] = []
    chunks: list[Chunk] = []


class RunnerReady(Message, frozen=True):
    """Runner to scheduler: weights are loaded; rows and slots are empty.

    Ranks of one life of their group have the same ``epoch``: no others compute together.
    """

    rank: int
    pages: int  # that the device holds, of every layer; for KV and for adapters
    page_tokens: int  # whose KV of one layer fills a page
    adapter_slots: int  # entries of the table of adapters
    page_granules: int  # granules of adapter weights that one layer's page holds
    epoch: int = 1  # of the runner


class TokenLogprobs(Part, frozen=True):
    """Log probabilities of one sampled token, after temperature and penalties are left out."""

    index: int  # into the step's sampled rows
    chosen: float
    top_tokens: list[int]  # most likely first
    top: list[float]


class StepDone(Message, frozen=True):
    """Runner rank 0 to scheduler: one token for each row that sampled, in ascending row order."""

    step: int
    tokens: list[int]
    failed: list[int] = []  # indices whose logits were not finite; their tokens mean nothing
    logprobs: list[TokenLogprobs] = []
    compute_us: int = 0
    loading: list[int] = []  # slots whose adapters are not there yet: a step that uses them waits
