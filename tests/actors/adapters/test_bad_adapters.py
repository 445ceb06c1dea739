"""Folders that nobody should be able to serve: each is refused with a reason, and nothing else."""

import json
import math
import random
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import save

from tests.actors.adapters import folders
from tests.actors.adapters.folders import build, folder, tensor_name, tensors
from weft.actors.adapters import peft_config, safetensors
from weft.actors.adapters.base import MODULES
from weft.actors.adapters.errors import BadAdapter

MUTATIONS = 3000


def changed(**changes):
    """The valid tensors with some replaced, or taken out by None."""
    found = tensors() | changes
    return {name: value for name, value in found.items() if value is not None}


def spoilt(name, change):
    """A file whose header's entry of one tensor is changed."""
    file = save(tensors())
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    header[name] |= change
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + file[8 + length :]


def test_the_folder_that_the_others_are_made_from_is_good():
    assert build(folder()).rank == 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type: 'IA3' is not supported; it must be LORA"),
        ({"task_type": "SEQ_CLS"}, "task_type: .*must be CAUSAL_LM"),
        ({"r": 0}, "r: 0 is no rank"),
        ({"r": -3}, "r: -3 is no rank"),
        ({"r": "4"}, "int"),
        ({"r": 2**40}, "is no rank"),
        ({"lora_alpha": float("nan")}, "lora_alpha: nan is not finite"),
        ({"target_modules": None}, "target_modules"),
        ({"target_modules": "x" * 5000}, "target_modules: .*too long; list the modules by name"),
        ({"rank_pattern": {f".*{i}": 1 for i in range(33)}}, "33 of them no plain names"),
        ({"alpha_pattern": {f"m{i}": 1 for i in range(4097)}}, "alpha_pattern: 4097 entries"),
        ({"rank_pattern": {"a)|(b": 4}}, "rank_pattern: .*no regular expression"),
        ({"target_modules": "("}, "target_modules: .*no regular expression"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern: .*no regular expression"),
        ({"rank_pattern": {"(?i)q_proj": 4}}, "rank_pattern: .*no regular expression: global"),
        ({"alpha_pattern": {"(?x) q_proj": 4}}, "alpha_pattern: .*no regular expression: global"),
        ({"alpha_pattern": {"[[a]q_proj": 4}}, "alpha_pattern: .*no regular expression: Possible"),
        ({"target_modules": "[a--z]_proj"}, "target_modules: .*no regular expression: Possible"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa' is not supported"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out: True is not supported"),
        ({"something_new": 1}, "something_new: 1 is not supported"),
        ({"target_modules": ["v_proj"]}, "target_modules does not cover it"),
        ({"r": 5}, "expected \\[5, 8\\] for rank 5"),
    ],
    ids=str,
)
def test_a_configuration_is_refused_by_field(config, message):
    with pytest.raises(BadAdapter, match=message):
        build(folder(config))


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"null", b"\xff", b'{"peft_type": ', b"[" * 100_000,
        b'{"peft_type": "LORA", "r": ' + b"9" * 10_000 + b"}",
        b'{"peft_type": "LORA", "\\ud800": 1}',
        b'{"peft_type": "LORA", "use_rslora": "\\udfff"}',
    ],
    ids=lambda raw: ascii(raw[:40]),
)  # fmt: skip
def test_a_configuration_that_is_no_object_is_refused(raw):
    with pytest.raises(BadAdapter, match="save the adapter again"):
        build(folder() | {"adapter_config.json": raw})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "no tensor"),
        (changed(**{tensor_name(side="B"): None}), "lora_B is missing"),
        (changed(**{tensor_name(): None}), "lora_A is missing"),
        (changed(**{tensor_name(): np.zeros((4, 9), np.float32)}), "shape .*expected"),
        (changed(**{tensor_name(): np.zeros((8, 4), np.float32)}), "shape .*expected"),
        (changed(**{tensor_name(): np.zeros(32, np.float32)}), "shape .*expected"),
        (changed(**{tensor_name(): np.full((4, 8), np.nan, np.float32)}), "infinite or NaN"),
        (changed(**{tensor_name(): np.full((4, 8), np.inf, np.float16)}), "infinite or NaN"),
        (changed(**{tensor_name(): np.zeros((4, 8), np.int32)}), "dtype I32 is not supported"),
        (changed(**{tensor_name(): np.zeros((4, 8), np.float64)}), "dtype F64 is not supported"),
        (changed(**{tensor_name(layer=2): np.zeros((4, 8), np.float32)}), "the base has 2 layers"),
        (changed(**{"lm_head.weight": np.zeros(2, np.float32)}), "lm_head.weight: not supported"),
        (
            changed(**{tensor_name("mlp.q_proj"): np.zeros((4, 8), np.float32)}),
            "not supported; an adapter may change",
        ),
        (
            changed(**{tensor_name().replace("weight", "bias"): np.zeros(4, np.float32)}),
            "not supported",
        ),
        (
            changed(
                **{tensor_name().replace(".weight", ".default.weight"): np.zeros((4, 8), "f4")}
            ),
            "the module has two",
        ),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_tensors_are_refused_by_name(weights, message):
    with pytest.raises(BadAdapter, match=message):
        build(folder(weights=weights))


def test_a_rank_beyond_the_limit_names_the_option():
    with pytest.raises(BadAdapter, match=r"more than max_lora_rank \(2\); raise"):
        build(folder(), rank_max=2)


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"\x00" * 7,
        (2**62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{]",
        (100).to_bytes(8, "little") + b"[" * 100,
        (100).to_bytes(8, "little") + b"{}",
        (26).to_bytes(8, "little") + b'{"a":{},"a":{},"b":{}}    ',
        (13).to_bytes(8, "little") + b'{"\\ud800":{}}',
        save(tensors()) + b"more",
        save(tensors())[:-1],
        spoilt(tensor_name(), {"data_offsets": [0, 10**12]}),
        spoilt(tensor_name(), {"data_offsets": [64, 192]}),
        spoilt(tensor_name(), {"data_offsets": [128, 0]}),
        spoilt(tensor_name(), {"data_offsets": [-128, 0]}),
        spoilt(tensor_name(), {"shape": [-4, -8]}),
        spoilt(tensor_name(), {"shape": [2**40, 2**40]}),
        spoilt(tensor_name(), {"shape": [4, 8.0]}),
        spoilt(tensor_name(), {"shape": [True, 32]}),
        spoilt(tensor_name(), {"dtype": 5}),
        spoilt(tensor_name(), {"extra": 1}),
    ],
    ids=lambda file: f"{len(file)}-bytes",
)
def test_a_damaged_file_is_refused(file):
    with pytest.raises(BadAdapter, match="save or copy it again"):
        build(folder(weights=file))


def test_no_damage_does_more_than_be_refused():
    rng = random.Random(0)
    good = folder()
    refused = 0
    for _ in range(MUTATIONS):
        files = dict(good)
        name = rng.choice(sorted(files))
        data = bytearray(files[name])
        for _ in range(rng.randrange(1, 4)):
            match rng.randrange(3):
                case 0:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                case 1:
                    del data[rng.randrange(len(data)) :][: rng.randrange(9)]
                case 2:
                    at = rng.randrange(len(data))
                    data[at:at] = rng.randbytes(rng.randrange(1, 9))
        files[name] = bytes(data)
        try:
            build(files)
        except BadAdapter:
            refused += 1
    assert refused > MUTATIONS // 2


@pytest.mark.parametrize("field", ["target_modules", "rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize(
    "pattern", ["(?:.|.)" * 30 + "[^j]", "(.|..|...)*[^a-z_.0-9]", "(?:.?){200}[^j]"]
)
def test_a_pattern_that_would_take_for_ever_is_given_up(field, pattern):
    config = {field: pattern if field == "target_modules" else {pattern: 4}}
    with pytest.raises(BadAdapter, match=f"{field}: .* takes too long to match; list the modules"):
        build(folder(config))


# What unsloth writes.
UNSLOTH = (
    r"(?:.*?(?:vision|image|visual|patch|language|text).*?(?:self_attn|attention|attn|mlp|"
    r"feed_forward|ffn|dense).*?(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\."
    r"(?:(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)))"
)


@pytest.mark.parametrize(
    "pattern",
    [
        UNSLOTH,
        r"(?i).*Q_PROJ|.*down_proj",
        r".*\.(0|1)\..*proj",
        r"^(?!.*vision).*_proj$",
        "model.*",
    ],
)
def test_patterns_that_people_write_are_taken(pattern):
    assert build(folder({"target_modules": pattern})).digest == build(folder()).digest


def test_a_rank_for_each_module_of_a_large_model_is_taken():
    names = [
        f"model.layers.{i}.{block}.{name}" for i in range(126) for name, block in MODULES.items()
    ]
    ranks = dict.fromkeys(reversed(names), 4)
    config = {
        "r": 9,
        "lora_alpha": 18,
        "rank_pattern": ranks,
        "alpha_pattern": dict.fromkeys(ranks, 8),
    }
    assert build(folder(config)).digest == build(folder()).digest


FIELDS = sorted(peft_config._READ_OR_HARMLESS | set(peft_config._ADVICE) | {"new", ""})
VALUES = [
    None, True, False, 0, 1, -1, 4, 2**70, 10**400, 1.5, math.nan, math.inf, "", "x", "all-linear",
    "q_proj", "\ud800", [], [1], ["q_proj"], [[]], {}, {"q_proj": 1}, {"q_proj": 2**70},
    {"q_proj": math.nan}, {"q_proj": None}, {"(": 1}, {"\udfff": 1}, {"": 4},
]  # fmt: skip


def test_no_configuration_does_more_than_be_refused():
    rng = random.Random(0)
    outcomes = Counter()
    for _ in range(MUTATIONS):
        changes = {rng.choice(FIELDS): rng.choice(VALUES) for _ in range(rng.randrange(1, 4))}
        try:
            build(folder(changes))
            outcomes["taken"] += 1
        except BadAdapter as error:
            str(error).encode()  # can be sent
            outcomes["refused"] += 1
    assert min(outcomes.values()) > MUTATIONS // 10
    assert len(outcomes) == 2


@pytest.mark.parametrize("depth", [100, 900, 980, 990, 995, 1000, 5000])
@pytest.mark.parametrize("field", ["new", "r", "peft_type", "init_lora_weights", "rank_pattern"])
def test_a_deep_configuration_is_refused(field, depth):
    raw = json.dumps(folders.CONFIG | {field: 0}).replace(
        f'"{field}": 0', f'"{field}": {"[" * depth}{"]" * depth}'
    )
    with pytest.raises(BadAdapter):
        build(folder() | {"adapter_config.json": raw.encode()})


def test_what_is_written_can_be_read_back():
    kept = build(folder())
    again = safetensors.parse(b"".join(bytes(part) for part in kept.file()))
    assert again == kept.tensors


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("base_model.model.model.", "base_model.model."),
        lambda name: name.replace(".weight", ".default.weight"),
    ],
    ids=["without the head", "of old versions"],
)
def test_other_spellings_of_the_names_are_the_same_adapter(rename):
    renamed = {rename(name): values for name, values in tensors().items()}
    assert build(folder(weights=renamed)).digest == build(folder()).digest


def test_one_module_under_two_spellings_is_refused():
    name = tensor_name().replace("base_model.model.model.", "base_model.model.")
    twice = {name: tensors()[tensor_name()], name.replace("_A", "_B"): np.zeros((8, 4), np.float32)}
    with pytest.raises(BadAdapter, match="the same module twice"):
        build(folder(weights=changed(**twice)))


def test_whatever_changes_the_result_changes_the_digest():
    float16 = {name: values.astype(np.float16) for name, values in tensors().items()}
    one_bit = tensors()
    one_bit[tensor_name()].view(np.uint32)[0, 0] ^= 1
    variants = [
        folder(),
        folder({"lora_alpha": 9}),
        folder({"use_rslora": True}),
        folder({"alpha_pattern": {"q_proj": 9}}),
        folder(weights=float16),
        folder(weights=one_bit),
        folder(weights=tensors(seed=1)),
        folder(weights=changed(**{tensor_name(): None, tensor_name(side="B"): None})),
    ]
    assert len({build(files).digest for files in variants}) == len(variants)


def test_what_changes_nothing_keeps_the_digest():
    reordered = save(dict(reversed(tensors().items())), metadata={"format": "pt"})
    same = [
        folder({"base_model_name_or_path": "elsewhere", "lora_dropout": 0.5}),
        folder({"target_modules": "all-linear"}),
        folder({"r": 9, "lora_alpha": 18, "rank_pattern": {".*": 4}, "alpha_pattern": {".*": 8}}),
        folder(weights=reordered),
    ]
    assert {build(files).digest for files in same} == {build(folder()).digest}
