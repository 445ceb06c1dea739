"""Folders that nobody should be able to serve: each is refused with a reason, and nothing else."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import save as save_torch

from tests.actors.adapters.folders import build, closed, folder, opened, tensor_name, tensors
from weft.actors.adapters import safetensors
from weft.actors.adapters.errors import BadAdapter
from weft.actors.adapters.safetensors import HEADER_BYTES_MAX


def changed(**changes):
    """The valid tensors with some replaced, or taken out by None."""
    found = tensors() | changes
    return {name: value for name, value in found.items() if value is not None}


def spoilt(name, change):
    """A file whose header's entry of one tensor is changed."""
    header, data = opened(save(tensors()))
    header[name] |= change
    return closed(header, data)


def gapped():
    """A file in which eight bytes between two tensors are nobody's."""
    header, data = opened(save(tensors()))
    last = max(header.values(), key=lambda entry: entry["data_offsets"])
    begin, end = last["data_offsets"]
    last["data_offsets"] = [begin + 8, end + 8]
    return closed(header, data[:begin] + bytes(8) + data[begin:])


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
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"alpha_pattern": {"q_proj": 1e999}}, "q_proj: inf is not finite; train"),
        ({"rank_pattern": {"q_proj": 0}}, "q_proj: 0 is no rank; it must be positive"),
        ({"rank_pattern": [4]}, "rank_pattern.*save the adapter again"),
        ({"use_rslora": "yes"}, "use_rslora.*save the adapter again"),
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


@pytest.mark.parametrize("limit", [2, 3])
def test_a_rank_beyond_the_limit_names_the_option(limit):
    with pytest.raises(BadAdapter, match=rf"more than max_lora_rank \({limit}\); raise"):
        build(folder(), rank_max=limit)


def test_a_rank_at_the_limit_is_taken():
    assert build(folder(), rank_max=4).rank == 4


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
        gapped(),
        spoilt(tensor_name(), {"data_offsets": [0, 10**12]}),
        spoilt(tensor_name(), {"data_offsets": [64, 192]}),
        spoilt(tensor_name(), {"data_offsets": [128, 0]}),
        spoilt(tensor_name(), {"data_offsets": [-128, 0]}),
        spoilt(tensor_name(), {"shape": [-4, -8]}),
        spoilt(tensor_name(), {"shape": [2**40, 2**40]}),
        spoilt(tensor_name(), {"shape": [4, 8.0]}),
        spoilt(tensor_name(), {"shape": [True, 32]}),
        spoilt(tensor_name(), {"shape": [1] * 1_000_000}),
        spoilt(tensor_name(), {"shape": [10**4000] * 400}),
        spoilt(tensor_name(), {"data_offsets": [10**4000, 10**4000]}),
        spoilt(tensor_name(), {"dtype": 5}),
        spoilt(tensor_name(), {"extra": 1}),
    ],
    ids=lambda file: f"{len(file)}-bytes",
)
def test_a_damaged_file_is_refused(file):
    with pytest.raises(BadAdapter, match="save or copy it again") as caught:
        build(folder(weights=file))
    assert len(str(caught.value)) < 300


def test_a_header_that_names_a_tensor_twice_is_refused():
    header, data = opened(save(tensors()))
    again = f', "{tensor_name()}": {json.dumps(header[tensor_name()])}}}'
    with pytest.raises(BadAdapter, match="a name occurs twice"):
        build(folder(weights=closed(json.dumps(header)[:-1] + again, data)))


def test_a_header_beyond_the_limit_is_refused_though_it_is_all_there():
    header, data = opened(save(tensors()))

    def padded(size):
        return closed(json.dumps(header).ljust(size), data)

    assert build(folder(weights=padded(HEADER_BYTES_MAX))).digest == build(folder()).digest
    with pytest.raises(BadAdapter, match=f"at most {HEADER_BYTES_MAX} are taken"):
        build(folder(weights=padded(HEADER_BYTES_MAX + 1)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_one_value_that_is_not_finite_is_found_in_any_type(dtype, value):
    weights = {name: torch.from_numpy(array).to(dtype) for name, array in tensors().items()}
    largest = torch.finfo(dtype).max
    weights[tensor_name()][0] = largest
    weights[tensor_name()][1] = -largest
    assert build(folder(weights=save_torch(weights))).rank == 4
    weights[tensor_name()][2, 5] = value
    with pytest.raises(BadAdapter, match=r"q_proj.lora_A: a value is infinite or NaN; train"):
        build(folder(weights=save_torch(weights)))


def test_what_is_written_can_be_read_back():
    kept = build(folder())
    again = safetensors.parse(b"".join(bytes(part) for part in kept.file()))
    assert again == kept.tensors


def test_one_module_under_two_spellings_is_refused():
    name = tensor_name().replace("base_model.model.model.", "base_model.model.")
    twice = {name: tensors()[tensor_name()], name.replace("_A", "_B"): np.zeros((8, 4), np.float32)}
    with pytest.raises(BadAdapter, match="the same module twice; keep one"):
        build(folder(weights=changed(**twice)))


def vectors(side, shape=(8,), *, others=True):
    """A folder's tensors with a vector of outputs for the first module, and for the other."""
    more = {f"{tensor_name().removesuffix('lora_A.weight')}{side}": np.ones(shape, np.float32)}
    if others:
        other = tensor_name("mlp.down_proj", layer=1).removesuffix("lora_A.weight")
        more[f"{other}{side}"] = np.ones(8, np.float32)
    return tensors() | more


@pytest.mark.parametrize(
    ("field", "side"), [("use_dora", "lora_magnitude_vector"), ("lora_bias", "lora_B.bias")]
)
def test_vectors_of_outputs_must_be_there_as_the_configuration_says(field, side):
    kept = build(folder({field: True}, vectors(side)))
    assert kept.digest != build(folder()).digest
    with pytest.raises(BadAdapter, match=f"{side}: .*{field} is not set"):
        build(folder({}, vectors(side)))
    with pytest.raises(BadAdapter, match=f"layers.1.mlp.down_proj: {side} is missing"):
        build(folder({field: True}, vectors(side, others=False)))
    with pytest.raises(BadAdapter, match=rf"q_proj.{side}: shape \[7\], expected \[8\]"):
        build(folder({field: True}, vectors(side, (7,))))
    spoiled = vectors(side)
    next(tensor for name, tensor in spoiled.items() if name.endswith(side))[3] = float("nan")
    with pytest.raises(BadAdapter, match=f"q_proj.{side}: a value is infinite or NaN"):
        build(folder({field: True}, spoiled))
