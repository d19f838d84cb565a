"""Triangular factors of float64 matrices, in blocks whose products are chains in a fixed order.

The results do not depend on a BLAS, nor on threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.gemm.fma import gemm_fma
from numsim.kernels.jit import kernel, over_range

Array = Any
_BLOCK = 64


@kernel
def _factor(a: Array) -> int:
    """Factor the lower triangle of a small matrix in place; return the first bad pivot or -1."""
    n = a.shape[0]
    for j in range(n):
        pivot = a[j, j]
        for k in range(j):
            pivot -= a[j, k] * a[j, k]
        if not pivot > 0.0:
            return j
        root = np.sqrt(pivot)
        a[j, j] = root
        for i in range(j + 1, n):
            total = a[i, j]
            for k in range(j):
                total -= a[i, k] * a[j, k]
            a[i, j] = total / root
    return -1


@kernel
def _solve_right(lower: Array, rows: Array, start: int, stop: int) -> None:
    """Replace rows r by r L^-T."""
    n = lower.shape[0]
    for row in range(start, stop):
        line = rows[row]
        for j in range(n):
            total = line[j]
            for k in range(j):
                total -= line[k] * lower[j, k]
            line[j] = total / lower[j, j]


@kernel
def _invert(lower: Array) -> None:
    """Invert a small lower triangle in place."""
    n = lower.shape[0]
    out = np.zeros((n, n))
    for j in range(n):
        out[j, j] = 1.0 / lower[j, j]
        for i in range(j + 1, n):
            total = 0.0
            for k in range(j, i):
                total -= lower[i, k] * out[k, j]
            out[i, j] = total / lower[i, i]
    lower[:] = out


def cholesky(matrix: Array) -> tuple[Array, int]:
    """Return (L with L L^T the matrix, -1), or the place of the first pivot that is not positive.

    >>> lower, bad = cholesky(np.array([[4.0, 2.0], [2.0, 5.0]]))
    >>> lower, bad
    (array([[2., 0.],
           [1., 2.]]), -1)
    """
    a = np.array(matrix, np.float64, order="C")
    n = len(a)
    for at in range(0, n, _BLOCK):
        end = min(at + _BLOCK, n)
        square = np.ascontiguousarray(a[at:end, at:end])
        bad = _factor(square)
        if bad >= 0:
            return a, at + bad
        a[at:end, at:end] = np.tril(square)
        if end == n:
            break
        below = np.ascontiguousarray(a[end:, at:end])
        over_range(lambda i, j: _solve_right(square, below, i, j), len(below))  # noqa: B023
        a[end:, at:end] = below
        turned = np.ascontiguousarray(below.T)
        for top in range(end, n, 1024):  # the lower triangle alone
            last = min(top + 1024, n)
            rows = below[top - end : last - end]
            a[top:last, end:last] -= gemm_fma(rows[None], turned[None, :, : last - end])[0]
    return np.tril(a), -1


def inverse_of_lower(lower: Array) -> Array:
    """Return the inverse of a lower triangle.

    >>> inverse_of_lower(np.array([[2.0, 0.0], [1.0, 2.0]]))
    array([[ 0.5 ,  0.  ],
           [-0.25,  0.5 ]])
    """
    n = len(lower)
    if n <= _BLOCK:
        out = np.array(lower, np.float64, order="C")
        _invert(out)
        return out
    half = -(-n // (2 * _BLOCK)) * _BLOCK
    first, second = inverse_of_lower(lower[:half, :half]), inverse_of_lower(lower[half:, half:])
    corner = np.ascontiguousarray(lower[half:, :half])
    out = np.zeros((n, n))
    out[:half, :half], out[half:, half:] = first, second
    out[half:, :half] = -gemm_fma(second[None], gemm_fma(corner[None], first[None]))[0]
    return out
