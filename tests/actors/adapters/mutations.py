"""Seeded mutations of a valid adapter's folder: of what its files say, of bytes, of the folder."""

import contextlib
import json
import os
import socket

import numpy as np
from safetensors.numpy import save

from tests.actors.adapters.folders import (
    CONFIG,
    closed,
    folder,
    matrix,
    opened,
    own_folder,
    tensors,
)
from tests.actors.adapters.test_damage import FIELDS, VALUES, damaged

CONFIG_NAME, WEIGHTS_NAME = folder()

DTYPES = ["F64", "F32", "F16", "BF16", "I8", "I64", "BOOL", "F8_E4M3", "", "f32", "X" * 300]
SPECIAL = [np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, 3.4e38]


def field(rng, files):
    """Give a field of the configuration another value, or take it away."""
    config = json.loads(files[CONFIG_NAME])
    name = rng.choice([*config, *FIELDS])
    if rng.random() < 0.2:
        config.pop(name, None)
    else:
        config[name] = rng.choice(VALUES)
    files[CONFIG_NAME] = json.dumps(config).encode()


def rank(rng, files):
    """Let the configuration and the tensors disagree, or agree on another rank."""
    config = json.loads(files[CONFIG_NAME])
    config |= {"r": rng.choice([1, 3, 4, 8, 64, 65]), "use_rslora": rng.random() < 0.5}
    files[CONFIG_NAME] = json.dumps(config).encode()
    if rng.random() < 0.6:
        files[WEIGHTS_NAME] = save(tensors(rng.choice([config["r"], 4, 5]), seed=rng.randrange(9)))


def value(rng, files):
    """Put a special value somewhere into the data."""
    weights = tensors(seed=rng.randrange(9))
    tensor = rng.choice(list(weights.values()))
    tensor.flat[rng.randrange(tensor.size)] = rng.choice(SPECIAL)
    files[WEIGHTS_NAME] = save(weights)


def precision(rng, files):
    """Save some tensors in another type."""
    kinds = [np.float16, np.float32, np.float64, np.int8, np.int32]
    files[WEIGHTS_NAME] = save(
        {name: tensor.astype(rng.choice(kinds)) for name, tensor in tensors().items()}
    )


def entry(rng, files):
    """Give a part of a tensor's entry another value."""
    header, data = opened(files[WEIGHTS_NAME])
    chosen = header[rng.choice([name for name in header if name != "__metadata__"])]
    match rng.randrange(4):
        case 0:
            chosen["dtype"] = rng.choice(DTYPES)
        case 1:
            chosen["shape"] = rng.choice([chosen["shape"][::-1], [*chosen["shape"], 1], [0], []])
        case 2:
            shift = rng.choice([-4, 4, 128, 2**40, -(2**70)])
            chosen["data_offsets"] = [offset + shift for offset in chosen["data_offsets"]]
        case 3:
            chosen[rng.choice([*chosen, "extra"])] = rng.choice(VALUES)
    files[WEIGHTS_NAME] = closed(header, data)


def names(rng, files):
    """Rename, remove, swap or repeat a tensor."""
    header, data = opened(files[WEIGHTS_NAME])
    header.pop("__metadata__", None)
    one, other = rng.sample(list(header), 2)
    match rng.randrange(5):
        case 0:
            header[one.replace("layers.0", "layers.7").replace("model.", "", 1)] = header.pop(one)
        case 1:
            del header[one]
        case 2:
            header[one], header[other] = header[other], header[one]
        case 3:
            header[f"{one}{rng.choice(['.bias', '.default', '/../x', ' '])}"] = header.pop(one)
        case 4:
            text = json.dumps(header)[:-1] + f", {json.dumps(one)}: {json.dumps(header[one])}}}"
            files[WEIGHTS_NAME] = closed(text, data)
            return
    files[WEIGHTS_NAME] = closed(header, data)


KINDS = [
    "weight", "base_layer.weight", "original_module.weight", "modules_to_save.weight",
    "token_adapter.base_layer.weight", "token_adapter.trainable_tokens_delta", "lora_A.weight",
    "lora_B.weight", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "bias",
]  # fmt: skip
MODULES = ["model.embed_tokens", "embed_tokens", "lm_head", "model.lm_head", "model.norm", "norm"]
MODULES += ["model.layers.0.input_layernorm", "model.layers.9.input_layernorm", "model.layers.0"]


def own(rng, files):
    """Add a tensor of an embedding, a head or a norm, or let another have this name."""
    header, data = opened(files[WEIGHTS_NAME])
    name = f"base_model.model.{rng.choice(MODULES)}.{rng.choice(KINDS)}"
    if rng.random() < 0.5:
        header[name] = header.pop(rng.choice(list(header)))
    else:
        shape = rng.choice([(19, 8), (20, 8), (23, 8), (4, 20), (8, 4), (2, 8), (8,), (0, 8)])
        more = np.resize(matrix(rng.randrange(3)), shape).tobytes()
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(more)]}
        header[name], data = entry, data + more
    files[WEIGHTS_NAME] = closed(header, data)


def meaning(rng, files):
    """Let the configuration name other modules and tokens."""
    config = json.loads(files[CONFIG_NAME])
    names = [*MODULES, "q_proj", "down_proj", "mlp", "", "x", "layernorm"]
    match rng.randrange(4):
        case 0:
            config["modules_to_save"] = rng.sample(names, rng.randrange(4))
        case 1:
            config["target_modules"] = rng.sample(names, rng.randrange(1, 6))
        case 2:
            tokens = rng.choice(
                [[], [1], [3, 3], [19, 20, 21], [-1], [2**40], [0.5], list(range(20))]
            )
            name = rng.choice(["embed_tokens", "lm_head", "wte"])
            config["trainable_token_indices"] = rng.choice([tokens, {name: tokens}])
        case 3:
            config["ensure_weight_tying"] = rng.random() < 0.8
    files[CONFIG_NAME] = json.dumps(config).encode()


def many(rng, files):
    """Name very many tensors without a byte."""
    count = rng.choice([10, 100, 1000, 20_000])
    empty = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(count)}
    header, data = opened(files[WEIGHTS_NAME])
    files[WEIGHTS_NAME] = closed(header | empty, data)


def length(rng, files):
    """Let the first bytes promise another header."""
    promised = rng.choice([0, 1, 7, 2**20, 2**31, 2**63, 2**64 - 1])
    files[WEIGHTS_NAME] = promised.to_bytes(8, "little") + files[WEIGHTS_NAME][8:]


def size(rng, files):
    """Cut a file short, or add to it."""
    name = rng.choice([CONFIG_NAME, WEIGHTS_NAME])
    content = files[name]
    files[name] = rng.choice([content[: rng.randrange(len(content))], content + bytes(4), b""])


def depth(rng, files):
    """Nest lists."""
    nested = "[" * rng.choice([10, 1000, 100_000])
    files[CONFIG_NAME] = json.dumps(CONFIG)[:-1].encode() + f', "eva_config": {nested}'.encode()


def bytes_of_a_file(rng, files):
    """Damage bytes anywhere."""
    name = rng.choice([CONFIG_NAME, WEIGHTS_NAME])
    files[name] = damaged(rng, files[name])


OF_FILES = [
    field, field, rank, value, precision, entry, entry, names, names, many, length, size, depth,
    bytes_of_a_file, bytes_of_a_file, own, own, meaning, meaning,
]  # fmt: skip


def of_folder(rng, path):
    """Put something else in a file's place."""
    file = path / rng.choice([CONFIG_NAME, WEIGHTS_NAME])
    content = file.read_bytes()
    if rng.random() < 0.2:
        os.truncate(file, rng.choice([2**20, 2**40, 2**43]))  # sparse
        return
    file.unlink()
    match rng.randrange(8):
        case 0:
            os.mkfifo(file)
        case 1:
            file.mkdir()
        case 2:
            file.symlink_to(rng.choice(["/dev/zero", "/etc/passwd", "/proc/self/mem", "nothing"]))
        case 3:
            file.symlink_to(file.name)
        case 4:
            outside = path.parent / f"outside-{path.name}"
            outside.write_bytes(content)
            file.symlink_to(f"../{outside.name}")
        case 5:
            (path / "blob").write_bytes(content)
            file.symlink_to("blob")  # as in a hub's cache: allowed
        case 6:
            with socket.socket(socket.AF_UNIX) as end:
                descriptor = os.open(path, os.O_PATH)
                end.bind(f"/proc/self/fd/{descriptor}/{file.name}")  # short enough
                os.close(descriptor)
        case 7:
            pass  # gone


def mutated(rng, path):
    """Write a mutated adapter's folder."""
    files = rng.choice([folder, own_folder])()
    for _ in range(rng.choice([0, 1, 1, 1, 1, 2])):
        # What one has broken the next may find no way into.
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            rng.choice(OF_FILES)(rng, files)
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    if rng.random() < 0.15:
        of_folder(rng, path)
