"""Integer dot products of any accumulator width: wrap, saturate at every step, or report."""

from __future__ import annotations

import numpy as np

from numsim.kernels.jit import kernel

WRAP, SATURATE, RAISE = range(3)


@kernel
def matmul(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, out: np.ndarray, start: int, stop: int,
    low: int, high: int, overflow: int, found: np.ndarray,
) -> None:  # fmt: skip
    """Rows [start:stop] of D = A B + C in increasing k; a [M, K], b [K, N], c and out int64.

    Saturation clamps after every product. With RAISE the first overflow (row, column, k) of
    these rows goes to `found`, whose first entry is -1 while there is none. Products must not
    exceed 62 bits.
    """
    for i in range(start, stop):
        for j in range(b.shape[1]):
            out[i, j] = c[i, j]
        for k in range(a.shape[1]):
            x = np.int64(a[i, k])
            if overflow == WRAP:
                for j in range(b.shape[1]):
                    out[i, j] += x * np.int64(b[k, j])
            elif overflow == SATURATE:
                for j in range(b.shape[1]):
                    out[i, j] = min(max(out[i, j] + x * np.int64(b[k, j]), low), high)
            else:
                for j in range(b.shape[1]):
                    out[i, j] += x * np.int64(b[k, j])
                    if found[0] < 0 and (out[i, j] < low or out[i, j] > high):
                        found[0], found[1], found[2] = i, j, k
