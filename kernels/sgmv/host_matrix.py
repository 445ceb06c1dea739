"""Matrices in host memory, described by plain numbers."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class HostMatrix:
    """A matrix [rows, columns] that C reads.

    Every operation of torch lets go of Python's lock and takes it back, which holds up two threads
    that both do so. What is said here of a matrix takes none.
    """

    owner: object  # keeps the memory
    address: int
    dtype: torch.dtype
    shape: tuple[int, int]
    strides: tuple[int, int]  # in numbers

    @classmethod
    def of(cls, matrix: Tensor | HostMatrix) -> HostMatrix:
        """Describe a tensor of two dimensions, or leave what has been described."""
        if isinstance(matrix, HostMatrix):
            return matrix
        assert matrix.device.type == "cpu"
        (rows, columns), (down, right) = matrix.shape, matrix.stride()
        return cls(matrix, matrix.data_ptr(), matrix.dtype, (rows, columns), (down, right))

    def t(self) -> HostMatrix:
        """Return the same, transposed."""
        return replace(self, shape=self.shape[::-1], strides=self.strides[::-1])

    def part(self, rows: slice, columns: slice) -> HostMatrix:
        """Return some rows and columns of it, without steps."""
        row, row_end, _ = rows.indices(self.shape[0])
        column, column_end, _ = columns.indices(self.shape[1])
        skipped = row * self.strides[0] + column * self.strides[1]
        return replace(
            self,
            address=self.address + skipped * self.dtype.itemsize,
            shape=(row_end - row, column_end - column),
        )

    def tensor(self) -> Tensor:
        """Return it for torch, which must not use it after ``owner`` is gone."""
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        last = sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        memory = (ctypes.c_char * ((last + 1) * self.dtype.itemsize)).from_address(self.address)
        return torch.frombuffer(memory, dtype=self.dtype).as_strided(self.shape, self.strides)
