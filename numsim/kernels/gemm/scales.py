"""Block scales of an operand: their codes as kernels read them, and the outermost ones.

A million numbers have tens of thousands of scales: arrays of their powers, and searches for NaN,
took as long as packing the numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types

from numsim.kernels.ir import simd
from numsim.kernels.jit import borrowing_kernel

Array = npt.NDArray[Any]


class Scales(NamedTuple):
    """Codes of scales, uint8 [1 or batch, 1 or lines, blocks] of any strides.

    `groups`: of a kernel's groups of k, how many a block has; `magnitude`: the bits of a code but
    its sign, all of which NaN has; `least`, `greatest`: the outermost magnitudes.
    """

    codes: Array
    groups: int
    magnitude: int
    least: int
    greatest: int

    @property
    def nan(self) -> bool:
        """Whether a scale is NaN."""
        return self.greatest == self.magnitude

    def nan_lines(self) -> Array:
        """Return which lines have a scale that is NaN, [1 or batch, 1 or lines]."""
        found: Array = ((self.codes & self.magnitude) == self.magnitude).any(-1)
        return found

    def joined(self, batch: int, lines: int) -> Scales:
        """Return the scales of all lines of a batch as those of one item."""
        if len(self.codes) == 1:
            return self
        return self._replace(codes=self.codes.reshape(1, batch * lines, -1))


ONE = 127  # E8M0
NONE = Scales(np.full((1, 1, 1), ONE, np.uint8), 1 << 40, 255, ONE, ONE)  # of bare codes


@borrowing_kernel
def _outermost(codes: Array, magnitude: int) -> tuple[int, int]:
    least, greatest, mask = np.uint8(255), np.uint8(0), np.uint8(magnitude)
    for i in range(codes.size):
        code = np.uint8(codes[i] & mask)
        least = code if code < least else least
        greatest = code if code > greatest else greatest
    return int(least), int(greatest)


@cache
def _finder() -> Callable[..., Any]:
    return simd.compiled(_outermost, simd.contiguous(types.uint8, 1), types.int64)


def scales_of(codes: Array, groups: int, magnitude: int = 255) -> Scales:
    """Return scales by their codes, [batch, lines, blocks] of one byte.

    >>> scales_of(np.array([[[120, 130]]], np.uint8), 1)[2:]
    (255, 120, 130)
    """
    least, greatest = _finder()(np.ravel(codes, order="K"), magnitude)
    return Scales(codes, groups, magnitude, least, greatest)


@borrowing_kernel
def _turn(codes: Array, groups: int, table: Array, lines: int, used: int, words: Array) -> None:
    items, columns = codes.shape[0] - 1, codes.shape[1] - 1
    width = words.shape[3]
    for batch in range(words.shape[0]):
        for panel in range(words.shape[1]):
            for g in range(words.shape[2]):
                for i in range(width):
                    line = panel * width + i
                    word = np.int32(0)
                    if line < lines and g < used:
                        code = codes[min(batch, items), min(line, columns), g // groups]
                        word = table[code]
                    words[batch, panel, g, i] = word


@cache
def _turner() -> Callable[..., Any]:
    return simd.compiled(
        _turn, simd.strided(types.uint8, 3), types.int64, simd.contiguous(types.int32, 1),
        types.int64, types.int64, simd.contiguous(types.int32, 4),
    )  # fmt: skip


def by_columns(
    scales: Scales, table: Array, shape: tuple[int, ...], lines: int, used: int
) -> Array:
    """Return ``table[code]`` int32 of the scales of columns.

    `shape`: batch, panels, groups, columns of a panel; `lines`: columns in all. There are `used`
    groups; behind them and beside the columns there is 0.
    """
    words = np.empty(shape, np.int32)
    _turner()(scales.codes, scales.groups, table, lines, used, words)
    return words
