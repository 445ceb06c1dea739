"""Damaged files of what folders say: refused in few words, or taken and good for use."""

import json
import random

import msgspec
import pytest

from tests.actors.made_tokenizers import CHATML
from tests.sim.files import MemoryFiles
from weft.actors import chat_templates
from weft.actors.adapters import defaults
from weft.actors.adapters.base_text import BaseText
from weft.actors.adapters.errors import BadAdapter
from weft.actors.tokenizer.adapter_texts import AdapterTexts
from weft.actors.tokenizer.refusal import Refusal
from weft.runtime.messages import AdapterDefaults, AdapterEntry

CASES = 2000
VALUES = (
    None, True, -1, 0, 2**31, 2**70, 1e308, "", "x", "\x00", "\ufdd0", "<|im_end|>", "{{", [], {},
    [[]], [""], {"": ""}, "a" * 5000, [0] * 2000, {"id": 3, "content": "a"},
)  # fmt: skip


@pytest.fixture(scope="module")
def files(reference, tmp_path_factory):
    """Every file that is looked for."""
    folder = tmp_path_factory.mktemp("said")
    tokenizer = reference("byte_level")
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(folder)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    id_ = tokenizer.convert_tokens_to_ids("<think>")
    made = {
        "chat_template.jinja": CHATML,
        "weft.json": {"system_prompt": "a", "stop": ["b"], "sampling": {"top_p": 0.5, "top_k": 3}},
        "generation_config.json": {"temperature": 0.5, "eos_token_id": [3, 4], "do_sample": True},
        "added_tokens.json": {"<think>": id_},
    }
    return found | {
        name: (text if isinstance(text, str) else json.dumps(text)).encode()
        for name, text in made.items()
    }


def spoilt(rng, name, content):
    """A file with one thing changed: a byte, a piece, or a value."""
    kind = rng.randrange(4)
    if kind == 0 and name.endswith(".json"):
        values = json.loads(content)
        place = values
        while True:
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
                place = place[key]
            else:
                break
        place[key] = rng.choice(VALUES)
        return json.dumps(values).encode()
    at = rng.randrange(len(content))
    if kind == 1:
        return content[:at]
    if kind == 2:
        return content[:at] + rng.randbytes(rng.randrange(1, 4)) + content[at + 1 :]
    return content[:at] + content[at:][: rng.randrange(1, 200)] * rng.randrange(2, 4)


def read(folder, base):
    """What a folder says, or why it is refused."""
    try:
        return defaults.read(MemoryFiles({"/a": folder}), "/a", base)
    except BadAdapter as error:
        return str(error)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_damaged_file_is_refused_or_means_something(seed, files, model_folder, text_model):
    rng = random.Random(f"said {seed}")
    model = text_model("byte_level")
    base = BaseText(str(model_folder("byte_level")))
    texts = AdapterTexts(model)
    counts = {"refused": 0, "taken": 0}
    for _ in range(CASES):
        name = rng.choice(sorted(files))
        folder = files | {name: spoilt(rng, name, files[name])}
        said = read(folder, base)
        if isinstance(said, str):
            assert len(said) < 1000, said
            assert said.isprintable(), said
            counts["refused"] += 1
            continue
        counts["taken"] += 1
        raw = msgspec.msgpack.encode(said)
        assert msgspec.msgpack.decode(raw, type=AdapterDefaults) == said
        chat_templates.compiled(said.chat_template)
        try:
            prompts = texts.of(AdapterEntry("a", "/a", "d", 1, 0, defaults=said))
        except Refusal as refusal:
            raise AssertionError((said.added_tokens, folder[name][:500])) from refusal
        assert all(0 <= end < model.vocab_size for end in prompts.model.eos_token_ids)
    assert min(counts.values()) > CASES / 20, counts
