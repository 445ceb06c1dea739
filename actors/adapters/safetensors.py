"""The safetensors format, read without trust and without torch.

A file is the header's length (8 bytes, little-endian), the header (JSON: name to dtype, shape and
offsets), and the tensors' bytes. See https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from weft.actors.adapters import strict_json
from weft.actors.adapters.errors import BadAdapter, shown_name

# An adapter of a hundred layers with seven modules each has 1,400 entries of about 150 bytes.
HEADER_BYTES_MAX = 4 * 1024 * 1024

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}

_ARRAYS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<i4"}

# Of a shape, whose product is taken before anything else is known of it: a header has place for a
# million sizes, or for a thousand of four thousand digits. A is two-dimensional, and so is B.
_DIMENSIONS_MAX = 8
_SIZE_MAX = 2**63

_LENGTH_BYTES = 8
_BF16_EXPONENT = 0x7F80


class Tensor(NamedTuple):
    """A tensor's bytes, row-major and little-endian."""

    dtype: str  # a key of ITEM_BYTES, or I32, which no file of an adapter has
    shape: tuple[int, ...]
    data: memoryview

    @property
    def is_finite(self) -> bool:
        """Whether no value is infinite or NaN."""
        if self.dtype == "BF16":
            return not np.any((self.array & _BF16_EXPONENT) == _BF16_EXPONENT)
        return bool(np.isfinite(self.array).all())

    @property
    def array(self) -> NDArray[Any]:
        """What it holds; of BF16, which numpy does not know, the bits."""
        return np.frombuffer(self.data, _ARRAYS[self.dtype]).reshape(self.shape)

    @staticmethod
    def of(array: NDArray[Any], dtype: str) -> Tensor:
        """Return a tensor of what ``Tensor.array`` gives."""
        own = np.ascontiguousarray(array, _ARRAYS[dtype])
        return Tensor(dtype, own.shape, own.reshape(-1).view(np.uint8).data)


def floats(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Return what a ``Tensor.array``, or a part of one, of this dtype stands for."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def parse(file: bytes) -> dict[str, Tensor]:
    """Return the tensors of a file, as views of it. Raises ``BadAdapter``."""
    header, start = _header(file)
    header.pop("__metadata__", None)
    content = memoryview(file)[start:]
    tensors = {}
    spans = []
    for name, entry in header.items():
        dtype, shape, (begin, end) = _entry(name, entry)
        if end > len(content):
            raise BadAdapter(
                f"tensor {shown_name(name)}: ends at byte {end} of {len(content)}; {_DAMAGED}"
            )
        tensors[name] = Tensor(dtype, shape, content[begin:end])
        spans.append((begin, end))
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise BadAdapter(f"tensors overlap or leave a gap at byte {position}; {_DAMAGED}")
        position = end
    if position != len(content):
        raise BadAdapter(f"{len(content) - position} bytes belong to no tensor; {_DAMAGED}")
    return tensors


def serialize(tensors: dict[str, Tensor], metadata: dict[str, str]) -> list[bytes | memoryview]:
    """Return the parts of a file; the same tensors and metadata give the same bytes."""
    header: dict[str, Any] = {"__metadata__": metadata}
    position = 0
    for name, tensor in sorted(tensors.items()):
        end = position + len(tensor.data)
        header[name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [position, end],
        }
        position = end
    encoded = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    # Padded, so that the tensors are aligned for whoever maps the file.
    encoded += b" " * (-len(encoded) % _LENGTH_BYTES)
    length = len(encoded).to_bytes(_LENGTH_BYTES, "little")
    return [length, encoded, *(tensor.data for _, tensor in sorted(tensors.items()))]


_DAMAGED = "the file is damaged; save or copy it again"


def _header(file: bytes) -> tuple[dict[str, Any], int]:
    """Return the header and where the tensors' bytes start."""
    length = int.from_bytes(file[:_LENGTH_BYTES], "little")
    start = _LENGTH_BYTES + length
    if len(file) < _LENGTH_BYTES or start > len(file) or length > HEADER_BYTES_MAX:
        raise BadAdapter(
            f"header of {length} bytes in a file of {len(file)}, at most {HEADER_BYTES_MAX} are "
            f"taken; {_DAMAGED}"
        )
    try:
        header = strict_json.loads(file[_LENGTH_BYTES:start])
    except (ValueError, RecursionError) as error:
        raise BadAdapter(f"the header is no JSON ({error}); {_DAMAGED}") from None
    if not isinstance(header, dict):
        raise BadAdapter(f"the header is no JSON object; {_DAMAGED}")
    return header, start


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    tensor = f"tensor {shown_name(name)}"
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]} if (
            len(entry) == 3
            and len(shape) <= _DIMENSIONS_MAX
            and all(type(size) is int and 0 <= size < _SIZE_MAX for size in (*shape, begin, end))
        ):
            pass
        case _:
            raise BadAdapter(f"{tensor}: no dtype, shape and data_offsets; {_DAMAGED}")
    if dtype not in ITEM_BYTES:
        raise BadAdapter(
            f"{tensor}: dtype {shown_name(dtype)} is not supported; save it as float32, float16 "
            f"or bfloat16"
        )
    if begin > end or end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise BadAdapter(
            f"{tensor}: {end - begin} bytes do not make {dtype} of shape {shape}; {_DAMAGED}"
        )
    return dtype, tuple(shape), (begin, end)
