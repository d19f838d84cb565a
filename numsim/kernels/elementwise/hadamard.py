"""Fast Hadamard transforms of rows.

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
def _by_sixteen(x: Any, factor: Any, out: Any, start: int, stop: int) -> None:
    """Do the same for m of 1 and spans of 16 and more from x to `out`, and multiply by the factor.

    Two steps pass together; a row stays near while they follow one another.
    """
    wide_vectors()
    span = x.shape[1]
    for row in range(start, stop):
        source, line = x[row], out[row]
        for i in range(span // 4):  # steps of 1 and 2
            a, b, c, d = source[4 * i], source[4 * i + 1], source[4 * i + 2], source[4 * i + 3]
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
        while 4 * step <= span:
            by = factor if 4 * step == span else x.dtype.type(1)
            for at in range(0, span, 4 * step):
                one, two = line[at : at + step], line[at + step : at + 2 * step]
                three = line[at + 2 * step : at + 3 * step]
                four = line[at + 3 * step : at + 4 * step]
                for i in range(one.size):
                    a, b, c, d = one[i], two[i], three[i], four[i]
                    low, high, other, rest = a + b, c + d, a - b, c - d
                    one[i], three[i] = (low + high) * by, (low - high) * by
                    two[i], four[i] = (other + rest) * by, (other - rest) * by
            step *= 4
        if step < span:
            one, two = line[:step], line[step:]
            for i in range(one.size):
                a, b = one[i], two[i]
                one[i], two[i] = (a + b) * factor, (a - b) * factor
        elif span == 16:
            for i in range(16):
                line[i] *= factor


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


_NEAR = 1 << 16  # values that stay near between two steps


def rotate(x: Any, two: int, odd: Any) -> Any:
    """Return rotated rows [count, two * m]; `odd` [m, m] of +-1.

    >>> rotate(np.float32([[1, 2, 3, 4]]), 4, np.ones((1, 1), np.float32))
    array([[ 5., -1., -2.,  0.]], dtype=float32)
    """
    m = len(odd)
    span = two * m
    factor = x.dtype.type(1 / np.sqrt(np.float64(span)))
    out, signs = np.empty_like(x), np.ascontiguousarray(odd)
    few = max(_NEAR // span, 1)

    def work(start: int, stop: int) -> None:
        if m == 1 and span >= 16:
            _by_sixteen(x, factor, out, start, stop)
            return
        for at in range(start, stop, few):
            end = min(at + few, stop)
            out[at:end] = x[at:end]
            _butterflies(out, m, span, at, end)
            _finish(out, signs, factor, at, end)

    over_range(work, len(x), grain=grain_of(len(x), x.size * 8))
    return out
