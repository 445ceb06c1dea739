"""What folders say belongs to names: the same weights may be talked to in several ways."""

import json

from tests.actors.adapters.folders import folder, tensors
from tests.actors.adapters.sandboxed import outcomes, write
from tests.actors.adapters.shelf import Shelf
from weft.actors.adapters import registry
from weft.actors.adapters.errors import BadAdapter
from weft.actors.adapters.registry import Registry
from weft.runtime.messages import (
    AdapterAnswer,
    AdapterDefaults,
    AdapterEntry,
    AdapterReply,
    AdapterRequest,
    Catalog,
    CatalogSeen,
    LoadAdapter,
    Refused,
)

BRIEF = {"weft.json": b'{"system_prompt": "Be brief.", "stop": "END", "sampling": {"top_k": 2}}'}
LONG = {"weft.json": b'{"system_prompt": "Take your time."}'}


def of(name, files):
    """The weights of shelf adapter ``name``, in a folder with these files beside."""
    return folder(weights=tensors(seed=ord(name))) | files


class Desk:
    """A shelf whose operations are answered at once, as far as the tokenizer goes."""

    def __init__(self, changes):
        self.shelf = Shelf("ab", changes=changes)
        self.catalogs = []
        self.turn()

    def turn(self):
        """Let the store say everything that it has to say; return its answers to clients."""
        answers = []
        while sends := self.shelf.advance():
            for _, message in sends:
                if isinstance(message, Catalog):
                    self.catalogs.append(message)
                    self.shelf.hear(CatalogSeen(message.version))
                if isinstance(message, AdapterReply):
                    answers.append(message.answer)
        return answers

    def load(self, name, source, *, replace=False):
        self.shelf.hear(AdapterRequest("ann", LoadAdapter("l", name, source, replace)))
        [answer] = self.turn()
        return answer

    def entry(self, name):
        return self.shelf.store._registry.find(name)


def test_a_folder_that_says_something_else_is_loaded_in_place_of_the_same_weights():
    desk = Desk({"/brief": of("a", BRIEF), "/long": of("a", LONG)})
    before = desk.entry("a")
    refused = desk.load("a", "/brief")
    assert isinstance(refused, Refused)
    assert refused.code == "name_taken"
    replaced = desk.load("a", "/brief", replace=True)
    assert isinstance(replaced, AdapterAnswer)
    assert replaced.outcome == "replaced"
    [state] = replaced.adapters
    assert (state.digest, state.version > before.version) == (before.digest, True)
    assert (state.defaults.system_prompt, state.defaults.stop) == (True, 1)
    assert desk.catalogs[-1].adapters[0].defaults.system_prompt == "Be brief."
    assert desk.load("a", "/brief", replace=True).outcome == "already_loaded"
    assert desk.load("a", "/long", replace=True).outcome == "replaced"
    assert desk.entry("a").defaults == AdapterDefaults(system_prompt="Take your time.")
    # Nothing of the content has left.
    assert desk.shelf.counters()["leaving"] == 0


def test_two_names_of_one_content_say_what_their_own_folders_say():
    desk = Desk({"/brief": of("a", BRIEF), "/long": of("a", LONG)})
    brief, long = desk.entry("brief"), desk.entry("long")
    assert brief.digest == long.digest == desk.entry("a").digest
    assert (brief.defaults.system_prompt, long.defaults.system_prompt) == (
        "Be brief.", "Take your time.",
    )  # fmt: skip
    assert desk.entry("a").defaults is None


def test_a_file_that_is_wrong_refuses_its_folder_alone():
    desk = Desk({"/bad": of("a", {"weft.json": b'{"stop": 5}'})})
    assert desk.entry("bad").refused.startswith("weft.json: stop: Expected `str | array | null`")
    assert desk.entry("a").refused is None
    answer = desk.load("b", "/bad", replace=True)
    assert (answer.code, answer.param) == ("bad_adapter", "source")
    assert "weft.json: stop" in answer.message


def entry(name, **said):
    return AdapterEntry(name, "/a", "", 0, 0, defaults=AdapterDefaults(**said))


def test_a_catalog_that_is_too_large_comes_in_parts(monkeypatch):
    monkeypatch.setattr(registry, "CATALOG_BYTES_MAX", 100_000)
    names = Registry()
    for number in range(9):
        names.put(entry(f"n{number}", system_prompt="x" * 30_000))
    names.remove("n2")  # the tenth change
    catalogs = []
    while (catalog := names.catalog()) is not None:
        catalogs.append(catalog)
    told = [[e.name for e in catalog.adapters] + catalog.removed for catalog in catalogs]
    assert told == [["n0", "n1", "n3", "n4", "n2"], ["n5", "n6", "n7", "n8"]]
    assert [(catalog.version, catalog.is_last) for catalog in catalogs] == [(5, False), (10, True)]


def test_a_part_of_a_catalog_claims_no_change_that_it_leaves_out(monkeypatch):
    monkeypatch.setattr(registry, "CATALOG_BYTES_MAX", 1)
    names = Registry()
    for number in (0, 1, 0, 2, 1):
        names.put(entry(f"n{number}", stop=[str(names.version)]))
    first, second, third = names.catalog(), names.catalog(), names.catalog()
    # What n0 means by the third change is known early; that n1 changed first at the second is not.
    assert (first.adapters[0].version, first.version) == (3, 1)
    assert (second.adapters[0].version, second.version) == (5, 3)
    assert (third.adapters[0].version, third.version, third.is_last) == (4, 5, True)


def test_a_child_reads_what_a_folder_says(loader, tmp_path):
    template = {"chat_template.jinja": b"{{ messages[0].content }}"}
    said, silent, bad = (
        write(tmp_path / name, folder() | files)
        for name, files in (
            ("said", BRIEF | template),
            ("silent", {}),
            ("bad", {"weft.json": b"["}),
        )
    )
    tickets = [loader.start(source, with_file=False) for source in (said, silent, bad)]
    one, two, three = outcomes(loader, tickets)
    assert one.facts.defaults.chat_template == "{{ messages[0].content }}"
    assert one.facts.defaults.stop == ["END"]
    assert (one.digest, two.facts.defaults) == (two.digest, None)
    assert isinstance(three, BadAdapter)
    assert "weft.json: it is no JSON" in str(three)


def test_a_child_reads_the_largest_that_is_taken(loader, tmp_path):
    own = {"system_prompt": "\U0001f9f5" * 15_000}
    files = {"weft.json": json.dumps(own).encode(), "chat_template.jinja": b"x" * 65_536}
    [result] = outcomes(
        loader, [loader.start(write(tmp_path / "a", folder() | files), with_file=False)]
    )
    assert result.facts.defaults.system_prompt == own["system_prompt"]


def test_a_template_that_would_compute_for_ever_is_only_read(loader, tmp_path):
    template = {
        "chat_template.jinja": b"{{ 10 ** (10 ** 10) }}{% for a in range(10 ** 9) %}{% endfor %}"
    }
    [result] = outcomes(
        loader, [loader.start(write(tmp_path / "a", folder() | template), with_file=False)]
    )
    assert result.facts.defaults.chat_template == template["chat_template.jinja"].decode()
