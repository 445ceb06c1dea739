"""What the log's lines about each request cost."""

import statistics
import time

from tests.bench import models
from tests.bench.load import make_prompts
from tests.bench.serving import generate, serve
from tests.bench.table import markdown

LEVELS = ("warning", "info")


def run(load, *, rounds, threads):
    """Return requests a second of the demonstration by level of logging, measured in turns.

    The ratio is the median of each round's own; the log goes to a file.
    """
    rates = []
    options = {"threads": threads, "max_num_seqs": max(64, load.requests)}
    with (
        serve(models.DEMO, {}, log_level="warning", **options) as silent,
        serve(models.DEMO, {}, log_level="info", **options) as telling,
    ):
        for server in (silent, telling):
            generate(server, make_prompts(load, []), tokens=4)
        servers = [silent, telling]
        for turn in range(rounds):
            rate = {}
            for server in servers if turn % 2 else reversed(servers):
                started = time.perf_counter()
                generate(server, make_prompts(load, []), tokens=load.output_tokens)
                rate[server] = load.requests / (time.perf_counter() - started)
            rates.append([rate[server] for server in servers])
    rows = [
        (
            level,
            f"{statistics.median(rate[index] for rate in rates):.1f}",
            f"{statistics.median(rate[index] / rate[0] for rate in rates):.3f}",
        )
        for index, level in enumerate(LEVELS)
    ]
    return markdown(("log_level", "requests a second", "of warning's"), rows)
