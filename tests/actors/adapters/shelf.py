"""An adapter store of a few hand-made adapters, without a disk."""

from tests.actors.adapters.folders import BASE, folder, tensors
from tests.sim.files import DirectLoader, MemoryFiles
from weft.actors.adapters.actor import AdapterStore
from weft.runtime.actor import Turn
from weft.runtime.config import Config
from weft.runtime.messages import (
    Acquire,
    AdapterReply,
    AdapterRequest,
    Catalog,
    CatalogSeen,
    Inspection,
)


class Shelf:
    """A store of a few adapters, with room on both links."""

    def __init__(self, names="abc", *, places=2, changes=None, policy="lru", **options):
        folders = {f"/{name}": folder(weights=tensors(seed=ord(name))) for name in names}
        self.files = MemoryFiles(folders | (changes or {}))
        self.room = {"tokenizer": 9, "scheduler": 9}
        config = Config(
            model="/base",
            adapters={path[1:]: path for path in self.files.folders},
            max_loras_per_batch=1,
            max_cpu_loras=places,
            lora_eviction_policy=policy,
            **options,
        )
        self.loader = DirectLoader(config, BASE, self.files)
        self.store = AdapterStore(config, self.files, self.loader, "/run", started_s=7)

    def advance(self):
        sends = self.store.advance(Turn(0, self.room.__getitem__))
        self.store.check()
        return sends

    def catalog(self):
        (to, catalog), *_ = self.advance()
        assert to == "tokenizer"
        assert isinstance(catalog, Catalog)
        return {entry.name: entry for entry in catalog.adapters}

    def hear(self, message):
        assert self.store.receive("scheduler", message, 0) == []

    def counters(self):
        self.hear(Inspection("c", "l", {}))
        [(_, inspection)] = self.advance()
        return inspection.sections["adapters"]

    def acquire(self, digest):
        self.hear(Acquire(digest))
        return [send.message for send in self.advance()]

    def ask(self, message):
        """The answer to a client, who asks for nothing else meanwhile."""
        self.hear(CatalogSeen(self.store._registry.version))
        self.hear(AdapterRequest("client", message))
        replies = []
        for _ in range(3):
            replies += [s.message for s in self.advance() if isinstance(s.message, AdapterReply)]
            self.hear(CatalogSeen(self.store._registry.version))
        [reply] = replies
        return reply.answer
