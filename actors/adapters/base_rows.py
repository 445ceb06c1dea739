"""The base's embedding and head, as far as an adapter's are compared with them.

An adapter's file often has a copy of them: PEFT writes one as soon as an embedding is adapted, or
the vocabulary was resized. What equals the base's need not be kept a second time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.actors.adapters.base import EMBEDDING, HEAD, BaseShapes
from weft.actors.adapters.safetensors import ITEM_BYTES, Tensor, floats

# Read at once.
_BLOCK_BYTES = 4 * 1024 * 1024


class BaseUnreadable(Exception):
    """The base's weights cannot be read; the message says why."""


def changed(module: str, own: Tensor, base: BaseShapes) -> NDArray[np.int64]:
    """Return which rows of an adapter's embedding or head are not the base's, ascending.

    ``own`` is [tokens, hidden], of as many tokens as the base has or more. Raises
    ``BaseUnreadable``.
    """
    array = own.array
    found = [np.arange(base.vocab_size, len(array))]
    for start, rows, dtype in _rows(module, base):
        mine = array[start : start + len(rows)]
        if dtype == own.dtype:
            differ = mine.view(f"u{mine.itemsize}") != rows.view(f"u{rows.itemsize}")
        else:
            differ = floats(mine, own.dtype) != floats(rows, dtype)
        found.insert(-1, start + np.flatnonzero(differ.any(axis=1)))
    return np.concatenate(found)


def at(module: str, ids: NDArray[np.integer], base: BaseShapes) -> NDArray[np.float32]:
    """Return the base's rows of these tokens: [ids, hidden]. Raises ``BaseUnreadable``."""
    result = np.empty((len(ids), base.hidden_size), np.float32)
    for start, rows, dtype in _rows(module, base):
        here = (ids >= start) & (ids < start + len(rows))
        result[here] = floats(rows[ids[here] - start], dtype)
    return result


def _rows(module: str, base: BaseShapes) -> Iterator[tuple[int, NDArray[Any], str]]:
    """Yield the first token, rows as ``Tensor.array`` gives them, and their dtype, in blocks."""
    saved = EMBEDDING if module == HEAD and base.tie_word_embeddings else module
    path, entry, start = _find(saved, Path(base.folder))
    dtype, (tokens, hidden) = str(entry["dtype"]), entry["shape"]
    if (tokens, hidden) != (base.vocab_size, base.hidden_size) or dtype not in ITEM_BYTES:
        raise BaseUnreadable(f"{path}: {saved} is {dtype} {[tokens, hidden]}")
    row_bytes = hidden * ITEM_BYTES[dtype]
    count = max(1, _BLOCK_BYTES // row_bytes)
    with open(path, "rb") as file:
        file.seek(start + entry["data_offsets"][0])
        for first in range(0, tokens, count):
            shape = (min(count, tokens - first), hidden)
            block = file.read(shape[0] * row_bytes)
            if len(block) != shape[0] * row_bytes:
                raise BaseUnreadable(f"{path}: it ends within {saved}")
            yield first, Tensor(dtype, shape, memoryview(block)).array, dtype


def _find(module: str, folder: Path) -> tuple[Path, dict[str, Any], int]:
    """Return the file with a module's weight, its entry, and where the tensors' bytes start."""
    names = (f"model.{module}.weight", f"{module}.weight")
    try:
        for path in _files(folder, names):
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(length, os.fstat(file.fileno()).st_size)))
            for name in names:
                if name in header:
                    return path, header[name], 8 + length
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseUnreadable(f"{folder}: {error}") from None
    raise BaseUnreadable(f"{folder}: no file has {names[0]}")


def _files(folder: Path, names: tuple[str, ...]) -> list[Path]:
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    index = json.loads((folder / "model.safetensors.index.json").read_bytes())["weight_map"]
    return [folder / index[name] for name in names if name in index]
