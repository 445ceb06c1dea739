"""The safetensors format, read and written without torch: a header and raw bytes.

8 bytes little-endian header length, a JSON header (name -> dtype, shape, offsets), then the data.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

# Floating types that adapters come in, and their size in bytes.
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}

# The header of an adapter with 10,000 tensors takes about a megabyte.
HEADER_BYTES_MAX = 8 * 1024 * 1024
TENSORS_MAX = 100_000


class BadTensorFile(Exception):
    """The file is not what it should be; the message says where."""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the header says of one tensor."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class RawTensor(NamedTuple):
    """A tensor as it lies in a file."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    @property
    def is_finite(self) -> bool:
        """Whether every value is a finite number: none has all exponent bits set."""
        if self.dtype == "F32":
            bits, mask = np.frombuffer(self.data, "<u4"), 0x7F800000
        else:
            mask = 0x7C00 if self.dtype == "F16" else 0x7F80
            bits = np.frombuffer(self.data, "<u2")
        return not bool(((bits & mask) == mask).any())


@contextmanager
def opened(path: Path) -> Iterator[dict[str, RawTensor]]:
    """Map a file and yield its tensors by name; they are valid inside the block.

    Raises ``BadTensorFile`` before anything beyond the header is read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, start = _header(file.read(8 + HEADER_BYTES_MAX + 1), size)
        entries = _entries(header, size - start)
        if size == start:
            yield {name: RawTensor(e.dtype, tuple(e.shape), memoryview(b"")) for name, e in entries}
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            whole = memoryview(mapped)
            tensors = {
                name: RawTensor(
                    e.dtype,
                    tuple(e.shape),
                    whole[start + e.data_offsets[0] : start + e.data_offsets[1]],
                )
                for name, e in entries
            }
            try:
                yield tensors
            finally:
                for tensor in tensors.values():
                    tensor.data.release()
                whole.release()


def write(path: Path, tensors: dict[str, RawTensor], metadata: dict[str, str]) -> int:
    """Write a file and return its size in bytes. It appears whole or not at all."""
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.data.nbytes
        header[name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": (offset, end),
        }
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start aligned
    draft = path.with_name(path.name + ".part")
    with draft.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for tensor in tensors.values():
            file.write(tensor.data)
    draft.rename(path)
    return 8 + len(encoded) + offset


def _header(head: bytes, size: int) -> tuple[bytes, int]:
    if len(head) < 8:
        raise BadTensorFile("shorter than its header's length")
    (length,) = struct.unpack("<Q", head[:8])
    if length > HEADER_BYTES_MAX:
        raise BadTensorFile(f"a header of {length} bytes, {HEADER_BYTES_MAX} are allowed")
    if 8 + length > size:
        raise BadTensorFile("truncated within its header")
    return head[8 : 8 + length], 8 + length


def _entries(header: bytes, data_bytes: int) -> list[tuple[str, Entry]]:
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        entries = [(name, msgspec.json.decode(value, type=Entry)) for name, value in raw.items()]
    # A hostile header makes the decoder raise more than its own errors (RecursionError).
    except Exception as error:  # noqa: BLE001
        raise BadTensorFile(f"its header cannot be read: {error}") from None
    if len(entries) > TENSORS_MAX:
        raise BadTensorFile(f"{len(entries)} tensors, {TENSORS_MAX} are allowed")
    end = 0
    for name, entry in sorted(entries, key=lambda item: item[1].data_offsets):
        if entry.dtype not in DTYPE_BYTES:
            raise BadTensorFile(f"{name}: dtype {entry.dtype}, not one of {', '.join(DTYPE_BYTES)}")
        if any(size < 0 for size in entry.shape) or len(entry.shape) > 8:
            raise BadTensorFile(f"{name}: shape {entry.shape}")
        size = math.prod(entry.shape) * DTYPE_BYTES[entry.dtype]
        if entry.data_offsets != (end, end + size):
            raise BadTensorFile(f"{name}: its data does not lie where its shape says")
        end += size
    if end != data_bytes:
        raise BadTensorFile(f"{data_bytes} bytes of data, the header speaks of {end}")
    return entries
