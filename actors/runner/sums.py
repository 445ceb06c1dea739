"""The sums of adapters that rows use, numbered so that rows can be sorted by them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Terms = tuple[tuple[int, float], ...]
"""Slots of adapters and the weights of their updates, in the order in which they are added."""

# The number of no adapter at all, less than that of any sum.
BASE = -1


class Sums:
    """Distinct sums in use, each with a number: the more adapters, the greater.

    So of rows in this order, those that have an n-th adapter come last. Rows with the same adapters
    and weights have the same number, which may be another sum's once no row has it.
    """

    def __init__(self, rows: int, row_adapters: int) -> None:
        """There are at most so many ``rows``, and each has at most so many adapters."""
        self._stride = rows  # from the numbers of sums of n adapters to those of n + 1
        self._numbers: dict[Terms, int] = {}
        self._free = list(range(rows - 1, -1, -1))  # places in the arrays below
        self._rows = [0] * rows  # that use a sum
        self._terms: list[Terms] = [()] * rows
        self._slots: Ints = np.full((rows, row_adapters), -1, dtype=np.int64)
        self._weights: Floats = np.zeros((rows, row_adapters), dtype=np.float32)

    @property
    def slots(self) -> set[int]:
        """Slots that some row uses."""
        return {slot for terms in self._numbers for slot, _ in terms}

    def take(self, adapters: Sequence[tuple[int, float]]) -> int:
        """Return the number of a sum that one more row uses."""
        if not adapters:
            return BASE
        terms: Terms = tuple((slot, weight) for slot, weight in adapters)
        if terms not in self._numbers:
            place = self._free.pop()
            self._numbers[terms] = (len(terms) - 1) * self._stride + place
            self._terms[place] = terms
            self._slots[place] = -1
            for i, (slot, weight) in enumerate(terms):
                self._slots[place, i], self._weights[place, i] = slot, weight
        number = self._numbers[terms]
        self._rows[number % self._stride] += 1
        return number

    def drop(self, number: int) -> None:
        """Note that one row less uses a sum."""
        if number == BASE:
            return
        place = number % self._stride
        self._rows[place] -= 1
        if self._rows[place] == 0:
            del self._numbers[self._terms[place]]
            self._free.append(place)

    def tables(self, numbers: Ints) -> tuple[Ints, Floats]:
        """Return slots and weights of ascending sums: [sums, adapters of the last one].

        Past a sum's own the slot is -1.
        """
        width = int(numbers[-1]) // self._stride + 1 if len(numbers) else 1
        places = numbers % self._stride
        return self._slots[places, :width], self._weights[places, :width]
