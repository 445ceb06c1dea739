"""The store and adapters of other places: what it waits for, gives up, tries again and refuses."""

import pytest

from tests.actors.adapters.folders import BASE, build, folder, tensors
from tests.sim.files import DirectLoader, MemoryFiles
from weft.actors.adapters.actor import AdapterStore
from weft.actors.adapters.again import FIRST_PAUSE_NS
from weft.actors.adapters.errors import BadAdapter, Unavailable
from weft.runtime.actor import Turn
from weft.runtime.config import Config
from weft.runtime.messages import (
    Acquire,
    Acquired,
    AdapterAnswer,
    AdapterReply,
    AdapterRequest,
    Catalog,
    CatalogSeen,
    LoadAdapter,
    PrefetchAdapter,
    Refused,
    UnloadAdapter,
)

REMOTE = "hf://org/legal"
FILES = {
    "/local": folder(weights=tensors(seed=1)),
    REMOTE: folder(weights=tensors(seed=2)),
    "hf://org/other@v1": folder(weights=tensors(seed=3)),
}
DIGESTS = {source: build(files).digest for source, files in FILES.items()}


class Place:
    """A store whose adapters are slow to come until a test lets them."""

    def __init__(self, adapters, *, is_slow=True, faults=None, **options):
        config = Config(model="/base", adapters=adapters, **options)
        self.files = MemoryFiles(dict(FILES))
        self.loader = DirectLoader(config, BASE, self.files)
        self.loader.faults = faults or {}
        self.names = {}
        self.answers = []
        self.now_ns = 0
        self.store = AdapterStore(config, self.files, self.loader, "/run", started_s=0)
        self.loader.is_slow = is_slow

    def advance(self, by_ns=0):
        """Let it work until it has nothing more to say; the others hear it at once."""
        self.now_ns += by_ns
        while sends := self.store.advance(Turn(self.now_ns, lambda peer: 9)):
            self.store.check()
            for _, message in sends:
                if isinstance(message, Catalog):
                    self.names |= {entry.name: entry for entry in message.adapters}
                    self.names = {n: e for n, e in self.names.items() if n not in message.removed}
                    self.store.receive("scheduler", CatalogSeen(message.version), self.now_ns)
                else:
                    self.answers.append(message)

    def ask(self, operation):
        self.store.receive("tokenizer", AdapterRequest("c", operation), self.now_ns)
        self.advance()
        answers, self.answers = self.answers, []
        return [a.answer for a in answers if isinstance(a, AdapterReply)]

    def come(self):
        self.loader.is_slow = False
        self.advance()


def test_the_start_waits_for_folders_and_not_for_the_network():
    place = Place({"remote": REMOTE, "local": "/local"})
    place.advance()
    assert place.names["local"].digest == DIGESTS["/local"]
    assert place.names["remote"].is_unread  # requests for it wait
    place.come()
    assert place.names["remote"].digest == DIGESTS[REMOTE]
    place.store.receive("scheduler", Acquire(DIGESTS[REMOTE]), 0)
    place.advance()
    assert isinstance(place.answers[-1], Acquired)


def test_what_could_not_be_had_is_tried_again_after_longer_and_longer_pauses():
    place = Place({"remote": REMOTE}, faults={REMOTE: [Unavailable("down")] * 3})
    place.come()
    assert place.names["remote"].refused == "down"
    for pause_ns in (FIRST_PAUSE_NS, 2 * FIRST_PAUSE_NS):
        place.advance(by_ns=pause_ns - 1)
        before = len(place.loader.faults[REMOTE])
        place.advance(by_ns=1)
        assert len(place.loader.faults[REMOTE]) == before - 1
    assert place.names["remote"].refused == "down"
    place.advance(by_ns=4 * FIRST_PAUSE_NS)
    assert place.names["remote"].refused is None
    assert place.names["remote"].digest == DIGESTS[REMOTE]


def test_what_cannot_be_used_is_not_tried_again():
    place = Place({"remote": REMOTE}, faults={REMOTE: [BadAdapter("bad")]})
    place.come()
    place.advance(by_ns=10**15)
    assert place.names["remote"].refused == "bad"


def test_a_name_that_was_unloaded_is_not_tried_again():
    place = Place({"remote": REMOTE}, faults={REMOTE: [Unavailable("down")]})
    place.come()
    [answer] = place.ask(UnloadAdapter("l", "remote"))
    assert answer.outcome == "unloaded"
    place.advance(by_ns=10**15)
    assert place.names == {}


def test_a_source_that_cannot_be_reached_is_told_apart_from_a_bad_one():
    faults = {REMOTE: [Unavailable("down"), BadAdapter("bad")]}
    place = Place({}, is_slow=False, faults=faults, adapter_sources=["hf://org"])
    load = LoadAdapter("l", "legal", "org/legal")
    [unavailable], [bad], [loaded] = place.ask(load), place.ask(load), place.ask(load)
    assert (unavailable.code, bad.code) == ("source_unavailable", "bad_adapter")
    assert unavailable.retry_after_s is not None
    assert bad.retry_after_s is None
    assert (loaded.outcome, loaded.adapters[0].root) == ("loaded", REMOTE)


def test_unloading_what_has_not_come_yet_gives_it_up():
    place = Place({}, adapter_sources=["hf://org"])
    assert place.ask(LoadAdapter("l", "legal", "org/legal")) == []
    [unloaded] = place.ask(UnloadAdapter("u", "legal"))
    place.come()
    [load] = [a.answer for a in place.answers]
    assert (unloaded.label, unloaded.outcome) == ("u", "unloaded")
    assert (load.label, load.code) == ("l", "cancelled")
    assert place.names == {}
    assert place.files.written == {}


def test_unloading_what_is_being_replaced_gives_the_new_content_up_and_the_old_one_too():
    place = Place({"legal": "/local"}, adapter_sources=["hf://org"])
    place.advance()
    assert place.ask(LoadAdapter("l", "legal", REMOTE, replace=True)) == []
    place.ask(UnloadAdapter("u", "legal"))
    place.come()
    assert place.names == {}


@pytest.mark.parametrize(
    ("source", "field"),
    [
        (f"{REMOTE}#digest={DIGESTS[REMOTE]}", None),
        (REMOTE, DIGESTS[REMOTE]),
        (f"{REMOTE}#digest={DIGESTS[REMOTE]}", DIGESTS[REMOTE]),
    ],
)
def test_content_with_the_digest_that_was_told_is_taken(source, field):
    place = Place({}, is_slow=False, adapter_sources=["hf://org"])
    [loaded] = place.ask(LoadAdapter("l", "legal", source, digest=field))
    assert isinstance(loaded, AdapterAnswer)
    assert (loaded.adapters[0].digest, loaded.adapters[0].root) == (DIGESTS[REMOTE], REMOTE)


def test_content_with_another_digest_is_refused_with_both():
    place = Place({}, is_slow=False, adapter_sources=["hf://org"], adapter_roots=["/local"])
    for source in (REMOTE, "/local"):
        wrong = "0" * 64
        [refused] = place.ask(LoadAdapter("l", "legal", source, digest=wrong))
        assert refused.code == "bad_adapter"
        assert f"digest {DIGESTS[source]}, not {wrong}" in refused.message
    assert place.files.written == {}
    assert place.names == {}


def test_a_configuration_may_tell_a_digest_too():
    wrong = "0" * 64
    adapters = {"a": f"{REMOTE}#digest={DIGESTS[REMOTE]}", "b": f"/local#digest={wrong}"}
    place = Place(adapters)
    place.come()
    assert place.names["a"].digest == DIGESTS[REMOTE]
    assert wrong in place.names["b"].refused


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("org2/legal", "'hf://org2/legal' is not among the sources"),
        ("hf://org/legal@refs/pr/1", "adapter_sources"),
        ("s3://bucket/legal", "adapter_sources"),
        ("memory://legal", "is not read"),
        ("file:///etc", "outside the folders"),
        ("zip://x::hf://org/legal", "URLs within URLs"),
        ("hf://org/legal/../../x", "not followed"),
    ],
)
def test_nothing_is_fetched_for_a_request_from_anywhere_else(source, words):
    place = Place({}, adapter_sources=["hf://org"])
    [refused] = place.ask(LoadAdapter("l", "legal", source))
    assert isinstance(refused, Refused)
    assert (refused.code, refused.param) == ("invalid_value", "source")
    assert words in refused.message


def test_what_the_configuration_names_may_be_named_by_requests():
    place = Place({"other": "hf://org/other@v1"}, is_slow=False)
    place.advance()
    [loaded] = place.ask(LoadAdapter("l", "again", "hf://org/other@v1"))
    assert loaded.outcome == "loaded"
    [refused] = place.ask(LoadAdapter("l", "again", "hf://org/other"))
    assert "adapter_sources" in refused.message


def test_a_digest_is_still_expected_when_it_is_tried_again():
    wrong = "0" * 64
    adapters = {"a": f"{REMOTE}#digest={wrong}"}
    place = Place(adapters, faults={REMOTE: [Unavailable("down")]})
    place.come()
    assert place.names["a"].refused == "down"
    place.advance(by_ns=FIRST_PAUSE_NS)
    assert f"not {wrong}" in place.names["a"].refused


def test_a_folder_may_be_called_as_if_a_digest_followed():
    place = Place({}, is_slow=False, adapters_folder="/shelf")
    place.files.folders["/shelf/a#digest=x"] = FILES["/local"]
    place.advance(by_ns=10**10)
    [loaded] = place.ask(PrefetchAdapter("l", "a#digest=x"))
    assert loaded.outcome == "prefetched"
