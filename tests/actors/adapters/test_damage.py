"""Seeded damage to a valid folder: it is refused in a sentence, or was none, and never more."""

import json
import math
import random

import msgspec
import pytest
from safetensors.numpy import save

from tests.actors.adapters.folders import CONFIG, build, closed, folder, opened, tensors
from tests.actors.adapters.shelf import Shelf
from weft.actors.adapters import peft_config
from weft.actors.adapters.errors import BadAdapter

SEEDS = range(4)
MUTATIONS = 1000

FIELDS = sorted(peft_config._READ_OR_HARMLESS | set(peft_config._ADVICE))
FIELDS += ["new", "", "\ud800", "x" * 999, "line\nand\x00"]

# Those that are read in different ways, and one that is not known.
NESTED = ("rank_pattern", "r", "peft_type", "init_lora_weights", "unknown")

# What a field or an entry of the header may be found to be.
VALUES = [
    None, True, False, 0, -1, -8, 4, 2**31, 2**63, 10**400, 1.5, 1e308, math.nan, math.inf, "",
    "x", "x" * 5000, "all-linear", "q_proj", "\ud800", "\n\x00", ".?" * 60 + "X", "(?i)q_proj",
    [], [0], [1], [0, 8], [-1, 2], ["q_proj"], ["\ud800"], [[[]]],
    {}, {"q_proj": 4}, {"q_proj": -1}, {"q_proj": 2**70}, {"q_proj": math.nan}, {"q_proj": None},
    {"": 4}, {"(": 4}, {"\ud800": 4}, {"a": {"b": []}},
]  # fmt: skip


def outcome(files):
    """The adapter, or None if it was refused in words that can be logged and sent."""
    try:
        return build(files)
    except BadAdapter as refusal:
        message = str(refusal)
    assert 10 < len(message) < 1000
    assert message.isprintable()
    msgspec.msgpack.encode(message)
    return None


def damaged(rng, content):
    """Flip bits, cut out, insert or repeat bytes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        if not data:
            break
        at = rng.randrange(len(data))
        match rng.randrange(5):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + rng.randint(1, 8)]
            case 2:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            case 3:
                data[at:at] = data[at : at + rng.randint(1, 64)]
            case 4:
                del data[at + 1 :]
    return bytes(data)


@pytest.mark.parametrize("name", folder())
@pytest.mark.parametrize("seed", SEEDS)
def test_changed_bytes_are_refused_or_make_another_adapter(name, seed):
    rng = random.Random(seed)
    good = folder()
    kept = build(good)
    refused = others = 0
    for _ in range(MUTATIONS):
        found = outcome(good | {name: damaged(rng, good[name])})
        refused += found is None
        if found is not None:
            same = (found.scales, found.tensors) == (kept.scales, kept.tensors)
            assert same == (found.digest == kept.digest)
            others += not same
    assert refused > MUTATIONS // 2
    if name == "adapter_model.safetensors":  # few bytes of the other change what is computed
        assert others > 3


@pytest.mark.parametrize("seed", SEEDS)
def test_any_value_in_any_field_of_the_configuration_is_taken_or_refused(seed):
    rng = random.Random(seed)
    refused = 0
    for _ in range(MUTATIONS):
        changes = {rng.choice(FIELDS): rng.choice(VALUES) for _ in range(rng.randint(1, 2))}
        refused += outcome(folder(changes)) is None
    assert MUTATIONS // 2 < refused < MUTATIONS * 9 // 10


@pytest.mark.parametrize("seed", SEEDS)
def test_any_value_in_any_place_of_the_header_is_taken_or_refused(seed):
    rng = random.Random(seed)
    file = save(tensors())
    refused = 0
    for _ in range(MUTATIONS):
        header, data = opened(file)
        name = rng.choice([*header, "\ud800", "x" * 9999, "__metadata__", "0"])
        value = rng.choice(VALUES)
        if rng.random() < 0.7:
            entry = header.get(name, {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
            value = entry | {rng.choice([*entry, "extra"]): value}
        header[name] = value
        refused += outcome(folder(weights=closed(header, data))) is None
    assert MUTATIONS // 2 < refused < MUTATIONS


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_of_any_depth_is_refused_in_a_sentence(opening):
    """Python's decoder gives up at some depth, and what it still took is to be printed."""
    closing = {"[": "]", '{"a":': "}"}[opening]
    for depth in [*range(1, 1000, 7), *range(900, 1001), 5000, 300_000]:
        nested = f"{opening * depth}1{closing * depth}"
        for field in NESTED:
            raw = json.dumps(CONFIG)[:-1] + f', "{field}": {nested}}}'
            if (field, depth, opening) != ("rank_pattern", 1, '{"a":'):  # a rank after all
                assert outcome(folder() | {"adapter_config.json": raw.encode()}) is None
        assert outcome(folder(weights=closed(f'{{"a": {nested}}}', b""))) is None


def test_a_catalog_of_damaged_adapters_can_be_sent_and_the_good_one_is_in_it():
    rng = random.Random(0)
    changes = {f"/{i}": folder({"\ud800": rng.choice(VALUES[9:])}) for i in range(50)}
    changes |= {
        f"/{i}": {name: damaged(rng, content) for name, content in folder().items()}
        for i in range(50, 100)
    }
    catalog = Shelf("a", changes=changes).catalog()
    assert catalog["a"].refused is None
    assert len(msgspec.msgpack.encode(list(catalog.values()))) < 100_000
    assert sum(entry.refused is not None for entry in catalog.values()) > 80
