"""What a step costs beside the model: the scheduler's time, its messages, and the whole rest."""

import random
import statistics
import time

from tests.actors.scheduler_harness import Harness
from tests.bench import models
from tests.bench.serving import generate, serve
from tests.bench.table import markdown
from weft.runtime.client import Client
from weft.runtime.codec import encode
from weft.runtime.messages import Sampled

ROWS = (1, 32, 256)
STEPS = 200

# Of the table of waiting tenants.
BACKLOG_ROWS = 32
WAITING = (0, 64, 1024)


def scheduler_table():
    """Return microseconds and bytes of a step in which every row decodes."""
    rows = []
    for count in ROWS:
        costs, sizes = _measure(count)
        rows.append((count, f"{statistics.median(costs) * 1e6:.0f}", *sizes))
    return markdown(("rows", "scheduler, us", "Step, B", "StepDone, B", "Sampled, B"), rows)


def backlog_table():
    """Return microseconds of a step while many wait: for a row, or for an adapter's turn."""
    rows = []
    for waiting in WAITING:
        for what, free in (("a row", 0), ("an adapter", 8)):
            cells = []
            for policy in ("fcfs", "vtc"):
                costs, _ = _measure(
                    BACKLOG_ROWS, waiting=waiting, free=free, scheduling_policy=policy
                )
                cells.append(f"{statistics.median(costs) * 1e6:.0f}")
            rows.append((f"{waiting} tenants wait for {what}", *cells))
    return markdown(("", "fcfs", "vtc"), rows)


def _measure(count, *, waiting=0, free=0, **options):
    """Decode ``count`` rows; ``waiting`` tenants wait, though ``free`` further rows are free."""
    harness = Harness(
        pages=count * 80 + 64, max_num_seqs=count + free,
        max_num_batched_tokens=max(count + free, 32), block_size=16,
        max_queued_requests=2 * (count + waiting), max_loras_per_batch=1, **options,
    )  # fmt: skip
    for index in range(count):
        harness.generate(
            f"{index}", [5, 6, index % 900 + 10], max_tokens=STEPS * 3, stop_token_ids=[],
            adapter="own" if waiting and index == 0 else None,
        )  # fmt: skip
    while waiting and harness.scheduler._counters()["waiting"]:
        harness.run_step()
    for index in range(waiting):
        harness.generate(f"w{index}", [5, 6, 7], tenant=f"t{index}", adapter=f"a{index % 4}")
    costs, sizes = [], ()
    for _ in range(STEPS):
        while harness.advance():
            pass
        step = harness.steps.popleft()
        done = harness.engine.execute(step)
        started = time.perf_counter()
        sends = harness.scheduler.receive("runner0", done, harness.now_ns)
        sends += harness.scheduler.advance(_Turn(harness.now_ns))
        costs.append(time.perf_counter() - started)
        if len(done.tokens) == count:
            sampled = next(send.message for send in sends if isinstance(send.message, Sampled))
            sizes = [_size(message) for message in (step, done, sampled)]
        harness._deliver(sends)
    return costs[STEPS // 2 :], sizes


class _Turn:
    def __init__(self, now_ns):
        self.now_ns = now_ns

    def room(self, peer):
        return 100


def _size(message):
    return len(
        encode(message, source_epoch=1, destination_epoch=1, sequence=10**4, acknowledged=10**4)
    )


def share_table(*, threads):
    """Return how long a decode step takes, and how much of it the runner does not compute."""
    rows = []
    with serve(models.DEMO, {}, threads=threads, max_num_seqs=64) as server:
        for count in (1, 32, 64):
            prompts = [(None, [random.randrange(4, 400) for _ in range(8)]) for _ in range(count)]
            before = _totals(server)
            started = time.perf_counter()
            generate(server, prompts, tokens=200)
            elapsed_us = (time.perf_counter() - started) * 1e6
            steps, compute_us = (b - a for a, b in zip(before, _totals(server), strict=True))
            share = 1 - compute_us / elapsed_us
            rows.append(
                (count, f"{elapsed_us / steps:.0f}", f"{compute_us / steps:.0f}", f"{share:.0%}")
            )
    return markdown(("rows", "step, us", "computing, us", "everything else"), rows)


def _totals(server):
    with Client(server.run_dir) as client:
        sections = client.inspect().sections
    return sections["scheduler"]["steps_total"], sections["scheduler"]["compute_us_total"]
