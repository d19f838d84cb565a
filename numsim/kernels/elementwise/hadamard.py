"""Fast Hadamard transforms of rows, in place.

A row of 2**k m values is [2**k, m]: k steps of sums and differences along the first axis, then the
matrix of order m along the second, then one factor. Every step is rounded in the type of the
values; the order of additions is fixed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.instructions import wide_vectors
from numsim.kernels.jit import grain_of, kernel, over_range


@kernel
def _butterflies(x: Any, first: int, span: int, start: int, stop: int) -> None:
    """Add and subtract values `step` apart: steps first, 2 first .. span / 2 of rows."""
    wide_vectors()
    for row in range(start, stop):
        line = x[row]
        step = first
        while step < span:
            for at in range(0, span, 2 * step):
                low, high = line[at : at + step], line[at + step : at + 2 * step]
                for i in range(low.size):
                    a, b = low[i], high[i]
                    low[i] = a + b
                    high[i] = a - b
            step *= 2


@kernel
def _by_sixteen(x: Any, start: int, stop: int) -> None:
    """Do the same for m of 1 and spans of 16 and more, in runs that fill vectors."""
    wide_vectors()
    span = x.shape[1]
    for row in range(start, stop):
        line = x[row]
        for i in range(span // 4):  # steps of 1 and 2
            a, b, c, d = line[4 * i], line[4 * i + 1], line[4 * i + 2], line[4 * i + 3]
            low, high, other, rest = a + b, c + d, a - b, c - d
            line[4 * i], line[4 * i + 2] = low + high, low - high
            line[4 * i + 1], line[4 * i + 3] = other + rest, other - rest
        for at in range(0, span, 16):  # of 4 and 8
            run = line[at : at + 16]
            for i in range(4):
                a, b, c, d = run[i], run[i + 4], run[i + 8], run[i + 12]
                low, high, other, rest = a + b, c + d, a - b, c - d
                run[i], run[i + 8] = low + high, low - high
                run[i + 4], run[i + 12] = other + rest, other - rest
        step = 16
        while step < span:
            for at in range(0, span, 2 * step):
                for k in range(at, at + step, 16):
                    one, two = line[k : k + 16], line[k + step : k + step + 16]
                    for i in range(16):
                        a, b = one[i], two[i]
                        one[i] = a + b
                        two[i] = a - b
            step *= 2


@kernel
def _finish(x: Any, odd: Any, factor: Any, start: int, stop: int) -> None:
    """Multiply runs of m values by the matrix of order m, and everything by the factor."""
    wide_vectors()
    m = odd.shape[0]
    kept = np.empty(m, x.dtype)
    for row in range(start, stop):
        line = x[row]
        if m == 1:
            for i in range(line.size):
                line[i] *= factor
            continue
        for at in range(0, line.size, m):
            run = line[at : at + m]
            for i in range(m):
                total = x.dtype.type(0)
                for j in range(m):
                    total += run[j] * odd[i, j]
                kept[i] = total * factor
            for i in range(m):
                run[i] = kept[i]


def rotate(x: Any, two: int, odd: Any) -> None:
    """Rotate rows [count, two * m] in place; `odd` [m, m] of +-1.

    >>> x = np.float32([[1, 2, 3, 4]])
    >>> rotate(x, 4, np.ones((1, 1), np.float32)); x
    array([[ 5., -1., -2.,  0.]], dtype=float32)
    """
    m = len(odd)
    span = two * m
    factor = x.dtype.type(1 / np.sqrt(np.float64(span)))

    def work(start: int, stop: int) -> None:
        if m == 1 and span >= 16:
            _by_sixteen(x, start, stop)
        else:
            _butterflies(x, m, span, start, stop)
        _finish(x, np.ascontiguousarray(odd), factor, start, stop)

    over_range(work, len(x), grain=grain_of(len(x), x.size * 8))
