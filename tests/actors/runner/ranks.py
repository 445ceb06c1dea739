"""A tensor-parallel group in one process: a thread for each rank, real engines and collectives."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from weft.actors.runner.torch_engine import TorchEngine
from weft.actors.scheduler.group import agreed
from weft.kernels.collectives import shared_memory

TIMEOUT_S = 120.0


class Ranks:
    """Engines that execute each step together; answers as rank 0 does."""

    def __init__(self, config, backend=None) -> None:
        size = config.tensor_parallel_size
        self._pool = ThreadPoolExecutor(size)

        def start(rank):
            groups = [
                shared_memory.join(Path(place), rank, size, timeout_s=TIMEOUT_S, name=name)
                for name in ("steps", "loads")
            ]
            return TorchEngine(config, lambda share, what: None, *groups, backend and backend())

        with tempfile.TemporaryDirectory() as place:
            self.engines = list(self._pool.map(start, range(size)))
        self._ready = agreed([engine.ready() for engine in self.engines])

    def ready(self):
        return self._ready

    def execute(self, step):
        done = list(self._pool.map(lambda engine: engine.execute(step), self.engines))
        for other in done[1:]:
            assert other.tokens == done[0].tokens
            assert not other.logprobs
        return done[0]

    def counters(self):
        each = [engine.counters() for engine in self.engines]
        assert all(counters == each[0] for counters in each)
        return each[0]
