"""Tokens that an adapter's tokenizer has and the base's has not, as transformers saves them."""

import json

import pytest
from transformers import AddedToken as HfToken

from tests.actors.made_tokenizers import KINDS
from tests.sim.files import MemoryFiles
from weft.actors.adapters import defaults
from weft.actors.adapters.base_text import BaseText
from weft.actors.adapters.errors import BadAdapter
from weft.runtime.messages import AddedToken


@pytest.fixture
def saved(reference, tmp_path):
    """A function from changes of a tokenizer to the files that transformers saves."""

    def save(change, kind="byte_level"):
        tokenizer = reference(kind)
        change(tokenizer)
        tokenizer.save_pretrained(tmp_path / "saved")
        return {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}, tokenizer

    return save


@pytest.fixture(scope="module")
def base(model_folder):
    return BaseText(str(model_folder("byte_level")))


def tokens(base, files, **options):
    said = defaults.read(MemoryFiles({"/a": files}), "/a", base, **options)
    return [] if said is None else said.added_tokens


def changed(files, name, change):
    values = json.loads(files[name])
    change(values)
    return files | {name: json.dumps(values).encode()}


def think(tokenizer):
    tokenizer.add_tokens([HfToken("<think>", lstrip=True, normalized=False)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_are_found_with_their_flags(model_folder, saved, kind):
    files, tokenizer = saved(think, kind)
    first = len(tokenizer) - 2
    assert tokens(BaseText(str(model_folder(kind))), files) == [
        AddedToken(first, "<think>", lstrip=True),
        AddedToken(first + 1, "<|tool|>", special=True),
    ]


def test_added_tokens_of_older_versions_are_found(base, saved):
    files, tokenizer = saved(think)
    first = len(tokenizer) - 2
    decoder = {
        str(first): {"content": "<think>", "lstrip": True},
        str(first + 1): {"content": "<|tool|>", "special": True},
    }
    config = json.dumps({"added_tokens_decoder": decoder}).encode()
    assert tokens(base, {"tokenizer_config.json": config}) == tokens(base, files)


def test_added_tokens_that_are_only_named_are_special_if_they_have_a_role(base, saved):
    _, tokenizer = saved(think)
    first = len(tokenizer) - 2
    named = {
        "added_tokens.json": json.dumps({"<think>": first, "<|tool|>": first + 1}).encode(),
        "tokenizer_config.json": b'{"additional_special_tokens": ["<|tool|>"]}',
    }
    assert tokens(base, named) == [
        AddedToken(first, "<think>", normalized=True),
        AddedToken(first + 1, "<|tool|>", special=True),
    ]


def test_a_token_of_the_base_may_become_special(base, saved, reference):
    id_ = reference("byte_level").convert_tokens_to_ids("<tool_call>")
    files, _ = saved(lambda t: t.add_special_tokens({"eos_token": "<tool_call>"}))
    assert tokens(base, files) == [AddedToken(id_, "<tool_call>", special=True)]


def test_a_padding_token_needs_no_row(base, saved):
    files, tokenizer = saved(lambda t: t.add_special_tokens({"pad_token": "[PAD]"}))
    assert tokens(base, files, rows=len(tokenizer) - 1) == []


def test_another_token_without_a_row_is_refused(base, saved):
    files, tokenizer = saved(think)
    with pytest.raises(BadAdapter, match=r"'<\|tool\|>', has no embedding: there are \d+; save"):
        tokens(base, files, rows=len(tokenizer) - 1)


def test_another_ordinary_vocabulary_is_refused(model_folder, saved):
    files, _ = saved(lambda t: None)
    with pytest.raises(BadAdapter, match=r"tokenizer.json: model: its ordinary vocabulary is not"):
        tokens(BaseText(str(model_folder("metaspace"))), files)


def swap_two(values):
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (swap_two, "model: its ordinary vocabulary is not the base's"),
        (lambda v: v["model"]["merges"].pop(), "model: its ordinary vocabulary is not the base's"),
        (lambda v: v.pop("model"), "model: Expected `object`"),
        (lambda v: v["model"].update(vocab="x"), "model.vocab: Expected `object`"),
        (lambda v: v.update(added_tokens=[{"content": "x"}]), r"added_tokens\[0\].id: Expected"),
        (lambda v: v["added_tokens"][-1].update(id=-4), "has the id -4"),
        (lambda v: v["added_tokens"][-1].update(id=10_000), "has the id 10000, and .* is the next"),
        (lambda v: v["added_tokens"][-1].update(content="a"), "is 'a', and in the base it has"),
        (lambda v: v["added_tokens"][-1].update(content=""), "0 characters; a token has 1 to 256"),
        (lambda v: v["added_tokens"][0].update(content="<x>"), "is '<x>', and in the base"),
        (lambda v: v["added_tokens"][-1].update(content="<think>"), "has two ids"),
    ],
)
def test_a_tokenizer_that_disagrees_with_the_base_is_refused(base, saved, change, match):
    files, _ = saved(think)
    with pytest.raises(BadAdapter, match=match):
        tokens(base, changed(files, "tokenizer.json", change))


def test_files_that_disagree_are_refused(base, saved):
    files, tokenizer = saved(think)
    decoder = {str(len(tokenizer) - 1): {"content": "<other>"}}
    with pytest.raises(BadAdapter, match=r"is '<\|tool\|>', and '<other>' in another file"):
        tokens(
            base,
            changed(
                files, "tokenizer_config.json", lambda v: v.update(added_tokens_decoder=decoder)
            ),
        )


def test_too_many_added_tokens_are_refused(base, saved):
    files, _ = saved(lambda t: t.add_tokens([f"<{number}>" for number in range(1025)]))
    with pytest.raises(BadAdapter, match="1025 added tokens; at most 1024"):
        tokens(base, files, rows=10**6)


def test_how_a_version_spells_the_same_tokenizer_does_not_matter(base, saved):
    def respell(values):
        model = values["model"]
        model["merges"] = [" ".join(pair) for pair in model["merges"]]
        del model["ignore_merges"]
        model["continuing_subword_prefix"] = ""
        values["normalizer"] = {"type": "Sequence", "normalizers": [values["normalizer"]]}

    files, _ = saved(think)
    assert tokens(base, changed(files, "tokenizer.json", respell)) == tokens(base, files)


def test_a_base_without_tokenizer_json_has_nothing_to_compare_with(tmp_path, saved):
    (tmp_path / "config.json").write_text('{"vocab_size": 600}')
    files, _ = saved(think)
    with pytest.raises(BadAdapter, match="the base has none that it could be compared with"):
        tokens(BaseText(str(tmp_path)), files)
