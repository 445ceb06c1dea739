"""weft as it is served, over HTTP."""

from contextlib import contextmanager

from tests.bench.peers import completions
from tests.bench.serving import serve


def missing(peers):
    """Say what is needed first; None: nothing."""
    return None


@contextmanager
def start(setting):
    """Yield ``Ask``."""
    options = {
        "threads": setting.threads, "dtype": setting.dtype, "kv_cache_memory_mib": 2048,
        "max_lora_rank": setting.rank_max, "enable_prefix_caching": False,
    }  # fmt: skip
    with serve(setting.model, setting.adapters, **options) as server:
        yield completions.asker(server.url)
