"""Whether answers are right: each asked again, alone, of an engine that holds one adapter."""

from tests.actors.runner.engines import harness_of
from tests.sim.files import store_on_disk
from weft.runtime.actor import Turn
from weft.runtime.config import Config
from weft.runtime.messages import Acquire

# Enough for one adapter and one answer; the harness looks at each of them after every step.
PAGES = 160


def wrong(catalogue, place, asked):
    """Return how many of (question, answer) have other tokens than the adapter alone gives."""
    named = {q.model: str(catalogue.adapters[q.model]) for q, _ in asked}
    settings = Config(
        model=str(catalogue.model), adapters=named, max_loras_per_batch=1,
        max_loaded_loras=len(named),
    )  # fmt: skip
    store = store_on_disk(settings, catalogue.base, place)
    turn = Turn(0, lambda peer: 100)
    [(_, catalog)] = store.advance(turn)
    digests, files = {}, {}
    for entry in catalog.adapters:
        assert entry.refused is None, entry.refused
        digests[entry.name] = entry.digest
        store.receive("scheduler", Acquire(entry.digest), 0)
        [(_, acquired)] = store.advance(turn)
        files[entry.digest] = acquired.path
    assert len(files) == len(named), "two adapters are the same"
    harness = harness_of(
        catalogue.model, files, pages=PAGES, max_loras_per_batch=1, max_loaded_loras=1,
        block_size=16, kv_cache_memory_mib=64, enable_prefix_caching=False,
    )  # fmt: skip
    count = 0
    for index, (question, answer) in enumerate(asked):
        harness.generate(
            f"{index}", question.prompt, adapter=digests[question.model],
            max_tokens=question.tokens, stop_token_ids=[],
        )  # fmt: skip
        harness.run()
        count += harness.output(f"{index}") != answer.tokens
    return count
